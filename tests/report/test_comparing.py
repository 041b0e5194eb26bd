"""What is tested row by row: the rates of metrics.json too, and figures that are another's in a different unit."""

from __future__ import annotations

import json

import pytest
from folders import chat_folder

from tarazu.chat.evaluation.text_metrics import aggregate, score
from tarazu.report.analysis.comparison import compare
from tarazu.report.analysis.study_view import read_study
from tarazu.report.render.tables import best_of
from tarazu.report.sections.chat.methods import _direction
from tarazu.report.sections.chat.metrics import METRICS, sample_score

ANSWERS = [
    ("پاسخ کوتاه و درست این است", True),
    ("یک دو سه چهار یک دو سه چهار یک دو سه چهار", False),
    ("this answer is in another language", True),
    ("پرسش این است که چرا آسمان آبی است", True),
]


def answered(change=lambda output: output) -> list[dict]:
    question, reference = "پرسش این است که چرا آسمان آبی است؟", "چون نور آبی بیشتر پراکنده می‌شود"
    return [
        {
            "id": f"test-{i}",
            "from": "test",
            "output": change(output),
            "finished": done,
            "checks": {},
            "scores": score(change(output), question, reference),
        }
        for i, (output, done) in enumerate(ANSWERS)
    ]


@pytest.mark.parametrize("key", ["repetition", "wrong_script", "unfinished", "prompt_copy"])
def test_a_row_counts_in_a_rate_as_metrics_json_counts_it(key):
    samples = answered()
    rate = aggregate(samples)[key]
    assert 0 < rate < 1 and sum(sample_score(s, key) for s in samples) / len(
        samples
    ) == pytest.approx(100 * rate)


def test_only_answers_to_test_rows_count_in_rates():
    assert sample_score({**answered()[1], "from": "questions"}, "repetition") is None
    assert (
        sample_score({"from": "reading", "scores": {"exact_match": 1.0}}, "reading_exact_match")
        == 100
    )
    assert sample_score({"from": "test", "finished": None, "scores": {}}, "unfinished") is None


def test_every_quality_figure_is_tested_where_its_rows_are_known(tmp_path):
    """Better and worse are said where a test found them: a drop of one answer in eight is none."""
    folder = chat_folder(tmp_path)
    for name, finished in (("base", True), ("lora", False)):
        path = folder / name / "seed-0" / "samples.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        tests = [row for row in rows if row["from"] == "test"]
        tests[0]["finished"] = finished
        for row in tests[1:]:
            row["finished"] = True
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison, known = compare(read_study(folder), METRICS), METRICS.by_key
    assert comparison.is_significant("unfinished", "base", "lora") is False
    assert (
        comparison.is_significant("perplexity", "base", "lora") is True
        and comparison.pairs.get("perplexity") is None
    )  # the loss's test
    assert set(comparison.pairs) == {*METRICS.tested, *METRICS.secondary}
    said = [
        _direction(known["unfinished"], 0.125, sure).html.plain("en")
        for sure in (True, False, None)
    ]
    assert said == ["worse", "no difference found", "worse (not tested)"]


def test_every_equal_best_has_its_star():
    assert best_of([0.01, 0.0, 0.0, None], "low") == {1, 2} and best_of(
        [1.0, 3.0, 2.0], "high"
    ) == {1}
    assert best_of([2.0, 2.0], "low") == best_of([None, 1.0], "low") == set()
