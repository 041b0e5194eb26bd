"""Exact match and F1 against SQuAD's definition; unanswerable questions; which are drawn."""

from __future__ import annotations

import collections
import json
import random

import pytest
from chat import small, spelling

from tarazu.chat.data.chat_template import select_template
from tarazu.chat.data.persian import normalize_for_matching
from tarazu.chat.evaluation import reading_comprehension
from tarazu.chat.settings import Reading
from tarazu.commands import run as study_commands
from tarazu.errors import UserError
from tarazu.storage.atomic_io import read_json, read_jsonl

PHRASES = Reading(source="x").unanswerable


def squad_f1(a_gold: str, a_pred: str, normalize) -> float:
    """`compute_f1` of SQuAD 2.0's official evaluate-v2.0.py; `normalize` is an argument."""
    gold_toks, pred_toks = normalize(a_gold).split(), normalize(a_pred).split()
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def test_f1_equals_squads():
    words = ["کتاب", "می‌رود،", "«تهران»", "1395", "۱۳۹۵", "و", "و", "علي", "علی."]
    rng = random.Random(0)
    values = set()
    for _ in range(300):
        a, b = (" ".join(rng.choices(words, k=rng.randint(0, 6))) for _ in range(2))
        f1 = reading_comprehension.token_f1(a, b)
        assert f1 == pytest.approx(squad_f1(b, a, normalize_for_matching))
        values.add(round(f1, 3))
    assert len(values) > 10


@pytest.mark.parametrize(
    ("output", "reference", "exact", "f1"),
    [
        ("سال ١٢٩٠", "سال ۱۲۹۰.", 1, 1),  # Arabic and Persian digits, a full stop
        ("كتاب‌هاي «علمي»", "کتاب‌های علمی", 1, 1),  # Arabic kaf and ye, quotation marks
        ("در سال ۱۲۹۰ خورشیدی", "سال ۱۲۹۰", 0, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("تهران تهران", "تهران", 0, 2 * 0.5 * 1 / 1.5),  # a word counts as often as both have it
        ("اصفهان", "تهران", 0, 0),
        ("", "تهران", 0, 0),
        ("پاسخ در متن نیست", "متن نیست", 0, 0),  # it abstained: shared words do not count
    ],
)
def test_answerable(output, reference, exact, f1):
    scores = reading_comprehension.score(output, reference, PHRASES)
    assert scores["answerable"] and scores["exact_match"] == exact
    assert scores["f1"] == pytest.approx(f1)


@pytest.mark.parametrize("reference", ["پاسخ این پرسش در متن نیامده است.", "پاسخ در متن نیست"])
@pytest.mark.parametrize(
    ("output", "right"),
    [("پاسخ در متن نيست!", 1), ("«پاسخ این پرسش در متن نیامده است.»", 1), ("تهران", 0), ("", 0)],
)
def test_unanswerable(reference, output, right):
    scores = reading_comprehension.score(output, reference, PHRASES)
    assert not scores["answerable"] and scores["exact_match"] == scores["f1"] == right


def test_aggregate_separates_unanswerable_questions():
    scores = [
        reading_comprehension.score(o, r, PHRASES)
        for o, r in [("تهران", "تهران"), ("شهر تهران", "تهران"), ("ری", "پاسخ در متن نیست")]
    ]
    means = reading_comprehension.aggregate(scores)
    assert means["n"] == 3 and means["exact_match"] == pytest.approx(1 / 3)
    assert means["f1"] == pytest.approx((1 + 2 / 3) / 3)
    assert means["answerable"] == {
        "n": 2,
        "exact_match": 0.5,
        "f1": pytest.approx(5 / 6),
        "abstained": 0,
    }
    assert means["unanswerable"] == {"n": 1, "exact_match": 0, "f1": 0, "abstained": 0}
    assert means["items"] == [[1, 1, 1], [0, pytest.approx(2 / 3), 1], [0, 0, 0]]
    assert reading_comprehension.aggregate(scores[:1])["unanswerable"]["f1"] is None


def rows(path, texts: list[str]):
    path.write_text(
        "\n".join(
            json.dumps({"question": text, "answer": "بله"}, ensure_ascii=False) for text in texts
        ),
        encoding="utf-8",
    )
    return str(path)


def test_order_and_repetition_do_not_change_the_draw(tmp_path):
    texts = [f"پرسش {i}" for i in range(200)]
    template = select_template(spelling.llama3(), "llama")

    def drawn(texts, seed=0):
        asked = reading_comprehension.prepare(
            Reading(source=rows(tmp_path / "r.jsonl", texts), rows=10, seed=seed), template
        )
        return [sample["turns"][-1]["text"] for sample in asked]

    first = drawn(texts)
    assert len(set(first)) == 10
    assert drawn(texts[::-1] + texts) == first
    assert drawn(texts, seed=1) != first


def test_no_usable_row_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no row"):
        reading_comprehension.prepare(
            Reading(source=rows(tmp_path / "r.jsonl", [""])),
            select_template(spelling.llama3(), "llama"),
        )


def test_a_study_measures_reading_and_forgetting(tmp_path, monkeypatch):
    """If the references are the base model's own answers, its exact match is 1."""
    monkeypatch.setenv("TARAZU_CACHE", str(tmp_path / "cache"))
    model, source = small.save_model(tmp_path / "model"), tmp_path / "rows.jsonl"

    def run(references: dict[str, str], name: str):
        lines = [
            json.dumps({"question": asked, "answer": right}) for asked, right in references.items()
        ]
        source.write_text("\n".join(lines), encoding="utf-8")
        recipe = small.recipe(
            tmp_path / "recipe.yaml",
            model,
            questions=None,
            methods={"base": {}},
            reading={"source": str(source), "rows": 4, "max_new_tokens": 8},
            forgetting={"rows": 2, "persian": None},
        )
        folder = study_commands.run(str(recipe), str(tmp_path / name))
        samples = [
            s
            for s in read_jsonl(folder.path / "base/seed-0/samples.jsonl")
            if s["from"] == "reading"
        ]
        return (
            folder,
            read_json(folder.path / "base/seed-0/metrics.json"),
            {s["turns"][-1]["text"]: s["output"] for s in samples},
        )

    _, before, written = run({f"چند {i}؟": "هیچ" for i in range(4)}, "first")
    assert before["reading"]["exact_match"] == 0
    assert all(normalize_for_matching(text) for text in written.values())
    folder, after, again = run(
        {
            asked: text if i else "پاسخ در متن نیست"
            for i, (asked, text) in enumerate(written.items())
        },
        "second",
    )
    assert again == written
    reading = after["reading"]
    assert reading["answerable"] == {"n": 3, "exact_match": 1, "f1": 1, "abstained": 0}
    assert reading["unanswerable"]["f1"] == 0
    assert list(after["forgetting"]) == ["english"] and after["forgetting"]["english"]["rows"] == 2
    row = read_json(folder.path / "results.json")["rows"][0]
    assert row["reading_f1"] == 0.75
    english = after["forgetting"]["english"]
    assert row["english_bits_per_byte"] == english["bits_per_byte"]
