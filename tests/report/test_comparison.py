"""Tests on rows: rates count rows as metrics.json does; metrics in other units share a test."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from folders import chat_folder, write

from tarazu.chat.evaluation.text_metrics import aggregate, score
from tarazu.report.analysis.comparison import compare
from tarazu.report.analysis.study_view import read_study
from tarazu.report.render.tables import best_of
from tarazu.report.sections.chat.methods import _outcome
from tarazu.report.sections.chat.metrics import METRICS, sample_score

QUESTION = "پرسش این است که چرا آسمان آبی است؟"
REFERENCE = "چون نور آبی بیشتر پراکنده می‌شود"
ANSWERS = [  # and whether each was finished
    ("پاسخ کوتاه و درست این است", True),
    ("یک دو سه چهار یک دو سه چهار یک دو سه چهار", False),
    ("this answer is in another language", True),
    ("پرسش این است که چرا آسمان آبی است", True),
]


def answered() -> list[dict]:
    """Samples of test rows: a good answer, a repetitive one, one in English, a copied prompt."""
    return [
        {
            "id": f"test-{i}",
            "from": "test",
            "output": output,
            "finished": finished,
            "checks": {},
            "scores": score(output, QUESTION, REFERENCE),
        }
        for i, (output, finished) in enumerate(ANSWERS)
    ]


@pytest.mark.parametrize("key", ["repetition", "wrong_script", "unfinished", "prompt_copy"])
def test_row_counts_in_a_rate_as_in_metrics_json(key):
    samples = answered()
    rate = aggregate(samples)[key]
    mean = sum(sample_score(sample, key) for sample in samples) / len(samples)
    assert 0 < rate < 1 and mean == pytest.approx(100 * rate)


def test_only_answers_to_test_rows_count_in_rates():
    repetitive = answered()[1]
    assert sample_score({**repetitive, "from": "questions"}, "repetition") is None
    assert sample_score({"from": "test", "finished": None, "scores": {}}, "unfinished") is None
    reading = {"from": "reading", "scores": {"exact_match": 1.0}}
    assert sample_score(reading, "reading_exact_match") == 100


def test_all_metrics_with_rows_are_tested(tmp_path):
    """A method that fails to finish one answer of eight is not significantly worse."""
    folder = chat_folder(tmp_path)
    for name, finished in (("base", True), ("lora", False)):
        path = folder / name / "seed-0/samples.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        tests = [row for row in rows if row["from"] == "test"]
        for row in tests:
            row["finished"] = True
        tests[0]["finished"] = finished
        write(path, rows)
    comparison = compare(read_study(folder), METRICS)
    assert comparison.is_significant("unfinished", "base", "lora") is False
    # Perplexity has no test of its own: that of the loss holds for it.
    assert comparison.is_significant("perplexity", "base", "lora") is True
    assert set(comparison.pairs) == {*METRICS.tested, *METRICS.secondary}


@pytest.mark.parametrize(
    ("significant", "outcome"),
    [(True, "worse"), (False, "no difference found"), (None, "worse (not tested)")],
)
def test_outcome_says_whether_a_change_was_tested(significant, outcome):
    context = SimpleNamespace(
        study=SimpleNamespace(base=SimpleNamespace(name="base")),
        comparison=SimpleNamespace(is_significant=lambda *_: significant),
    )
    method, metric = SimpleNamespace(name="lora"), METRICS.by_key["unfinished"]
    assert _outcome(context, method, metric, 0.125).plain("en") == outcome


def test_all_equal_best_values_are_marked():
    assert best_of([0.01, 0.0, 0.0, None], "low") == {1, 2}
    assert best_of([1.0, 3.0, 2.0], "high") == {1}
    assert best_of([2.0, 2.0], "low") == best_of([None, 1.0], "low") == set()
