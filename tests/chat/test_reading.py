"""Exact match and F1 beside SQuAD's own definition and hand-made values; unanswerable questions; the draw of questions."""

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

WAYS = Reading(source="x").unanswerable


def squad_f1(a_gold: str, a_pred: str, normalised) -> float:
    """`compute_f1` of SQuAD 2.0's official evaluate-v2.0.py, its normalisation given from outside."""
    gold_toks, pred_toks = normalised(a_gold).split(), normalised(a_pred).split()
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def test_f1_is_that_of_squad():
    words = ["کتاب", "می‌رود،", "«تهران»", "1395", "۱۳۹۵", "و", "و", "علي", "علی."]
    draw = random.Random(0)
    values = set()
    for _ in range(300):
        a, b = (" ".join(draw.choices(words, k=draw.randint(0, 6))) for _ in range(2))
        assert reading_comprehension.token_f1(a, b) == pytest.approx(
            squad_f1(b, a, normalize_for_matching)
        )
        values.add(round(reading_comprehension.token_f1(a, b), 3))
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
        ("پاسخ در متن نیست", "متن نیست", 0, 0),  # it abstained: shared words earn nothing
    ],
)
def test_answerable(output, reference, exact, f1):
    made = reading_comprehension.score(output, reference, WAYS)
    assert made["answerable"] and made["exact_match"] == exact and made["f1"] == pytest.approx(f1)


@pytest.mark.parametrize("reference", ["پاسخ این پرسش در متن نیامده است.", "پاسخ در متن نیست"])
@pytest.mark.parametrize(
    ("output", "right"),
    [("پاسخ در متن نيست!", 1), ("«پاسخ این پرسش در متن نیامده است.»", 1), ("تهران", 0), ("", 0)],
)
def test_unanswerable(reference, output, right):
    made = reading_comprehension.score(output, reference, WAYS)
    assert not made["answerable"] and made["exact_match"] == made["f1"] == right


def test_gather_keeps_both_kinds_apart():
    scores = [
        reading_comprehension.score(o, r, WAYS)
        for o, r in [("تهران", "تهران"), ("شهر تهران", "تهران"), ("ری", "پاسخ در متن نیست")]
    ]
    made = reading_comprehension.aggregate(scores)
    assert (
        made["n"] == 3
        and made["exact_match"] == pytest.approx(1 / 3)
        and made["f1"] == pytest.approx((1 + 2 / 3) / 3)
    )
    assert made["answerable"] == {
        "n": 2,
        "exact_match": 0.5,
        "f1": pytest.approx(5 / 6),
        "abstained": 0,
    }
    assert made["unanswerable"] == {"n": 1, "exact_match": 0, "f1": 0, "abstained": 0}
    assert made["items"] == [[1, 1, 1], [0, pytest.approx(2 / 3), 1], [0, 0, 0]]
    assert reading_comprehension.aggregate(scores[:1])["unanswerable"]["f1"] is None


def rows(path, texts: list[str]):
    path.write_text(
        "\n".join(
            json.dumps({"question": text, "answer": "بله"}, ensure_ascii=False) for text in texts
        ),
        encoding="utf-8",
    )
    return str(path)


def test_the_same_questions_whatever_their_order(tmp_path):
    texts = [f"پرسش {i}" for i in range(200)]
    template = select_template(spelling.llama3(), "llama")

    def drawn(texts, seed=0):
        asked = reading_comprehension.prepare(
            Reading(source=rows(tmp_path / "r.jsonl", texts), rows=10, seed=seed), template
        )
        return [sample["turns"][-1]["text"] for sample in asked]

    first = drawn(texts)
    assert (
        len(set(first)) == 10
        and drawn(texts[::-1] + texts) == first
        and drawn(texts, seed=1) != first
    )


def test_no_usable_row_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no row"):
        reading_comprehension.prepare(
            Reading(source=rows(tmp_path / "r.jsonl", [""])),
            select_template(spelling.llama3(), "llama"),
        )


def test_a_study_measures_reading_and_forgetting(tmp_path, monkeypatch):
    """References that are what the base itself writes are met by the base to the letter, in the run's own files."""
    monkeypatch.setenv("TARAZU_CACHE", str(tmp_path / "cache"))
    model, source = small.save_model(tmp_path / "model"), tmp_path / "rows.jsonl"

    def run(references: dict[str, str], name: str):
        lines = [
            json.dumps({"question": asked, "answer": right}) for asked, right in references.items()
        ]
        source.write_text("\n".join(lines), encoding="utf-8")
        recipe = small.recipe(
            tmp_path / "recipe.yaml", model, questions=None, methods={"base": {}},
            reading={"source": str(source), "rows": 4, "max_new_tokens": 8}, forgetting={"rows": 2, "persian": None},
        )  # fmt: skip
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
    assert before["reading"]["exact_match"] == 0 and all(
        normalize_for_matching(text) for text in written.values()
    )
    folder, after, again = run(
        {
            asked: text if i else "پاسخ در متن نیست"
            for i, (asked, text) in enumerate(written.items())
        },
        "second",
    )
    assert again == written
    assert (
        after["reading"]["answerable"] == {"n": 3, "exact_match": 1, "f1": 1, "abstained": 0}
        and after["reading"]["unanswerable"]["f1"] == 0
    )
    assert list(after["forgetting"]) == ["english"] and after["forgetting"]["english"]["rows"] == 2
    row = read_json(folder.path / "results.json")["rows"][0]
    assert (
        row["reading_f1"] == 0.75
        and row["english_bits_per_byte"] == after["forgetting"]["english"]["bits_per_byte"]
    )
