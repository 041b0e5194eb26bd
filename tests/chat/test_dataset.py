"""The tokenized dataset: its rows, splits and counts, and when its cache is used."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from chat import spelling

from tarazu.chat.data import dataset, row_file
from tarazu.chat.data.chat_template import select_template
from tarazu.chat.data.conversation import NO_ANSWER, Conversation
from tarazu.chat.data.dataset import ChatDataset, prepare
from tarazu.chat.data.persian import normalize
from tarazu.chat.data.sources import local_path
from tarazu.errors import UserError

TOKENIZER = spelling.gemma()
TEMPLATE = select_template(TOKENIZER, "gemma2")
SPLIT = {"train": 0.8, "validation": 0.1, "test": 0.1}


def row(i: int, answer: str = "پاسخ") -> dict:
    return {
        "conversations": [
            {"from": "human", "value": f"پرسش {i}"},
            {"from": "gpt", "value": f"{answer} {i}"},
        ]
    }


def write(path: Path, rows: list) -> Path:
    lines = (
        item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in rows
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def build(
    source, tmp_path: Path, max_length: int = 64, split: dict | None = SPLIT, **options
) -> ChatDataset:
    return prepare(
        source,
        TOKENIZER,
        TEMPLATE,
        max_length=max_length,
        split=split,
        cache=tmp_path / "cache",
        **options,
    )


def answers(store: ChatDataset, split: str) -> list[str]:
    """The last answer of every row of a split."""
    return [store.conversation(split, i)[-1].text for i in range(store.size(split))]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", [row(i) for i in range(50)])


def test_a_row_is_what_the_template_encodes(source: Path, tmp_path: Path) -> None:
    store = build(source, tmp_path)
    for split in dataset.SPLITS:
        for i in range(store.size(split)):
            ids, supervised = store.row(split, i)
            turns = store.conversation(split, i)
            expected = TEMPLATE.encode(Conversation(tuple(turns)))
            assert ids.dtype == np.int32 and supervised.dtype == bool
            assert ids.tolist() == expected.ids.tolist()
            assert supervised.tolist() == expected.supervised.tolist()
            assert store.lengths(split)[i] == len(ids)
            answer_bytes = len(turns[-1].text.encode())
            assert store.answer_bytes(split, i) == expected.answer_bytes == answer_bytes
            assert turns[-1].text == f"پاسخ {store.location(split, i) - 1}"


def test_splits_are_exact_disjoint_and_seeded(source: Path, tmp_path: Path) -> None:
    store = build(source, tmp_path)
    assert [store.size(split) for split in dataset.SPLITS] == [40, 5, 5]
    parts = [set(answers(store, split)) for split in dataset.SPLITS]
    assert len(set.union(*parts)) == 50 == sum(map(len, parts))
    again, other = build(source, tmp_path), build(source, tmp_path, seed=1)
    assert answers(again, "test") == answers(store, "test") != answers(other, "test")
    assert len(list((tmp_path / "cache").iterdir())) == 1  # another seed tokenizes nothing


def test_the_order_of_the_file_does_not_decide_the_split(source: Path, tmp_path: Path) -> None:
    reversed_source = write(tmp_path / "reversed.jsonl", [row(i) for i in reversed(range(50))])
    original, changed = build(source, tmp_path), build(reversed_source, tmp_path)
    assert set(answers(original, "test")) == set(answers(changed, "test"))


def test_duplicates_are_dropped_or_kept_together(tmp_path: Path) -> None:
    rows = [row(i % 20) for i in range(60)]
    source = write(tmp_path / "rows.jsonl", [*rows, {"instruction": "پرسش 3", "output": "پاسخ  3"}])
    dropped = build(source, tmp_path)
    assert sum(dropped.size(split) for split in dataset.SPLITS) == 20 and dropped.duplicates == 41
    problem = next(p for p in dropped.issues.as_list() if p["reason"] == dataset.DUPLICATE)
    assert problem["count"] == 41 and problem["kind"] == "dropped"
    assert problem["lines"] == list(range(21, 41))
    kept = build(source, tmp_path, duplicates="keep")
    parts = [set(answers(kept, split)) for split in dataset.SPLITS]
    assert sum(kept.size(split) for split in dataset.SPLITS) == 61
    assert len(set.union(*parts)) == 20 == sum(map(len, parts))


def test_three_sources_drop_test_rows_from_training(tmp_path: Path) -> None:
    names = {"train": range(20), "validation": range(19, 25), "test": range(24, 30)}
    sources = {
        name: str(write(tmp_path / f"{name}.jsonl", [row(i) for i in r]))
        for name, r in names.items()
    }
    for duplicates in ("drop", "keep"):
        store = build(sources, tmp_path, split=None, duplicates=duplicates)
        # Rows 19 and 24 stay in validation and test.
        assert [store.size(split) for split in dataset.SPLITS] == [19, 5, 6]
        counts = {p["reason"]: p["count"] for p in store.issues.as_list()}
        assert counts == {dataset.IN_ANOTHER_SPLIT: 2}
    data = store.summary()
    assert data["source"].count(".jsonl") == 3 and len(data["sha256"]) == 64


def test_a_list_of_sources_and_the_first_rows_only(source: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "more.jsonl", [row(i) for i in range(100, 120)])
    store = build([str(source), str(other)], tmp_path)
    assert sum(store.size(split) for split in dataset.SPLITS) == 70
    assert {store.location("train", i).split(":")[0] for i in range(store.size("train"))} == {
        "rows.jsonl",
        "more.jsonl",
    }
    subset = build(source, tmp_path, rows=10)
    locations = [
        subset.location(split, i) for split in dataset.SPLITS for i in range(subset.size(split))
    ]
    assert sorted(locations) == list(range(1, 11))


def test_truncation_is_counted_and_a_row_without_an_answer_left_is_dropped(tmp_path: Path) -> None:
    rows = [row(i) for i in range(20)]
    rows[4] = row(4, "پاسخ بلند " * 40)
    rows[7] = {"instruction": "پرسش بلند " * 100, "output": "پاسخ"}
    store = build(write(tmp_path / "rows.jsonl", rows), tmp_path)
    problems = {p["reason"]: p for p in store.issues.as_list()}
    assert (
        problems[row_file.TRUNCATED]["lines"] == [5]
        and problems[row_file.TRUNCATED]["kind"] == "repaired"
    )
    dropped = problems[row_file.NOTHING_LEFT]
    assert dropped["lines"] == [8] and dropped["kind"] == "dropped"
    structure = store.summary()["structure"]
    assert structure["truncated_rows"] == 1 and structure["rows"] == 19
    assert max(int(store.lengths(split).max()) for split in dataset.SPLITS) == 64
    truncated = structure["lengths"]["tokens"]["max"] - 64
    total = sum(int(store.lengths(split).sum()) for split in dataset.SPLITS) + truncated
    assert structure["truncated_token_fraction"] == pytest.approx(truncated / total)


def test_problems_have_their_line_numbers(tmp_path: Path) -> None:
    rows = [row(i) for i in range(30)]
    rows[2:2] = [
        "{broken",
        json.dumps({"conversations": [{"from": "human", "value": "بی‌پاسخ"}]}),
        json.dumps(row(99)).replace("99", "٩\\u0000"),
    ]
    store = build(write(tmp_path / "rows.jsonl", rows), tmp_path)
    lines = {(p["kind"], p["reason"]): p["lines"] for p in store.issues.as_list()}
    assert lines["dropped", "malformed JSON"] == [3] and lines["dropped", NO_ANSWER] == [4]
    assert lines["repaired", "control characters removed"] == [5]
    cached = build(tmp_path / "rows.jsonl", tmp_path)
    assert cached.issues.as_list() == store.issues.as_list()


@pytest.mark.parametrize(
    ("rows", "reasons"),
    [
        (
            ["not json", '{"text": "x"}', '{"text": "y"}'],
            ["1 x malformed JSON (line 1)", "2 x no known schema (line 2, 3)"],
        ),
        (["", "  "], ["no row in it"]),
        ([{"instruction": "x " * 500, "output": "y"}], [row_file.NOTHING_LEFT]),
    ],
)
def test_a_source_without_a_usable_row_lists_the_reasons_and_caches_nothing(
    rows: list, reasons: list, tmp_path: Path
) -> None:
    source = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as error:
        build(source, tmp_path)
    assert all(reason in str(error.value) for reason in reasons)
    assert error.value.location == str(source)
    assert list((tmp_path / "cache").iterdir()) == []


def test_too_few_rows_for_three_splits(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [row(1), row(2)])
    with pytest.raises(UserError, match="no row for the train split"):
        build(source, tmp_path)


def test_the_cache_is_used_only_for_the_same_rows_tokens_and_length(
    source: Path, tmp_path: Path, monkeypatch
) -> None:
    written = []
    monkeypatch.setattr(
        row_file, "write", lambda *a, original=row_file.write: written.append(1) or original(*a)
    )
    build(source, tmp_path)
    build(source, tmp_path)
    assert len(written) == 1
    build(source, tmp_path, max_length=32)
    other = spelling.llama3()
    prepare(
        source, other, select_template(other), max_length=64, split=SPLIT, cache=tmp_path / "cache"
    )
    write(source, [row(i) for i in range(51)])
    store = build(source, tmp_path)
    assert len(written) == 4 and sum(store.size(split) for split in dataset.SPLITS) == 51
    arrow = max((tmp_path / "cache").glob("*/rows.arrow"), key=lambda p: p.stat().st_mtime)
    arrow.write_bytes(arrow.read_bytes()[:-100])  # as on a full disk
    assert build(source, tmp_path).size("train") == store.size("train") and len(written) == 5


def test_data_json_has_the_documented_keys(source: Path, tmp_path: Path) -> None:
    data = build(source, tmp_path, note="stands in for SlimOrca").summary()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data) == {
        "source",
        "sha256",
        "note",
        "tokenizer",
        "template",
        "max_length",
        "splits",
        "structure",
        "problems",
        "examples",
    }
    assert data["template"]["name"] == "gemma" and data["max_length"] == 64
    assert data["note"] == "stands in for SlimOrca"
    assert data["splits"]["train"]["rows"] == 40
    assert data["splits"]["train"]["tokens"] > data["splits"]["train"]["supervised"] > 40
    assert len(data["examples"]) == 5
    tokens = data["examples"][0]["tokens"]
    answer = data["examples"][0]["turns"][-1]["text"]
    assert "".join(text for text, loss in tokens if loss) == f"{answer}<end_of_turn>"
    assert all("tokens" not in example for example in data["examples"][1:])


def test_hostile_rows_are_all_cleaned_or_dropped(tmp_path: Path) -> None:
    """Every line of the hostile sample is used or dropped with a reason; used text is clean."""
    source = local_path("samples:hostile.jsonl")
    lines = [n for n, line in enumerate(source.read_bytes().split(b"\n"), 1) if line.strip()]
    store = build("samples:hostile.jsonl", tmp_path, max_length=128)
    used = {
        store.location(split, i): (split, i)
        for split in dataset.SPLITS
        for i in range(store.size(split))
    }
    dropped = [
        line for p in store.issues.as_list() if p["kind"] == "dropped" for line in p["lines"]
    ]
    assert sorted([*used, *dropped]) == lines and len(used) > 10 and len(dropped) > 10
    end = TOKENIZER.convert_tokens_to_ids("<end_of_turn>")
    for line, (split, i) in used.items():
        turns, (ids, supervised) = store.conversation(split, i), store.row(split, i)
        roles = [turn.role for turn in turns if turn.role != "system"]
        assert roles == ["user", "assistant"] * (len(turns) // 2), line
        for turn in turns:
            assert turn.text == turn.text.strip() != "", line
            assert normalize(turn.text) == (turn.text, set()), line
            assert not TEMPLATE.markers.search(turn.text), line
        assert supervised.any() and (ids == TOKENIZER.bos_token_id).sum() == 1
        assert (ids == end).sum() <= sum(t.role != "system" for t in turns), line
    json.dumps(store.summary(), ensure_ascii=False, allow_nan=False).encode("utf-8")


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further row takes at most 100 bytes of memory; it has 400 bytes of text and 60 tokens."""
    monkeypatch.setattr(row_file, "BATCH_ROWS", 64)

    def peak(count: int) -> int:
        source = write(
            tmp_path / f"{count}.jsonl", [row(i, "پاسخ بلند " * 20) for i in range(count)]
        )
        tracemalloc.start()
        store = build(source, tmp_path)
        num_tokens = sum(len(store.row("train", i)[0]) for i in range(store.size("train")))
        assert num_tokens == store.lengths("train").sum()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    peak(70)  # the first call also imports
    assert peak(1000) - peak(200) < 800 * 100 + 50_000
