"""Raw rows from every format, with their line numbers, in memory independent of the file size."""

from __future__ import annotations

import csv
import gzip
import json
import socket
import tracemalloc
from pathlib import Path

import pytest

from tarazu.chat.data import row_readers
from tarazu.chat.data.conversation import MALFORMED, NOT_TEXT
from tarazu.chat.data.sources import UnreadableRow, fingerprint, iter_rows
from tarazu.errors import UserError

ROWS = [{"instruction": f"پرسش {i}", "input": "", "output": f"پاسخ\n{i}"} for i in range(1, 4)]


def write_jsonl(path: Path) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8"
    )


def write_gz(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in ROWS).encode()))


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS = {
    "a.jsonl": write_jsonl,
    "a.ndjson": write_jsonl,
    "lines.json": write_jsonl,  # JSON lines under the wrong name are common
    "a.jsonl.gz": write_gz,
    "array.json": lambda path: path.write_text(json.dumps(ROWS)),
    "indented.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "object.json": lambda path: path.write_text(json.dumps({"version": 1.5, "data": ROWS})),
    "indented object.json": lambda path: path.write_text(
        json.dumps({"version": 1.5, "meta": {"x": [1]}, "data": ROWS}, indent=1)
    ),
    "a.csv": write_csv,
    "a.tsv": write_csv,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    locations, rows = zip(*iter_rows(path), strict=True)
    assert list(rows) == ROWS
    # In CSV the header is line 1, and the text of each record has a line break.
    assert locations == ((2, 4, 6) if path.suffix in (".csv", ".tsv") else (1, 2, 3))


def test_a_single_row_as_json(tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(row, indent=indent))
        assert list(iter_rows(tmp_path / "a.json")) == [(1, row)]


def test_a_folder_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_jsonl(tmp_path / "b.jsonl")
    write_csv(tmp_path / "sub" / "a.csv")
    (tmp_path / "README.md").write_text("not data")
    assert [location for location, _ in iter_rows(tmp_path)][:4] == [
        "b.jsonl:1",
        "b.jsonl:2",
        "b.jsonl:3",
        "sub/a.csv:2",
    ]
    (tmp_path / "sub" / "a.csv").unlink()
    assert [location for location, _ in iter_rows(tmp_path)] == [1, 2, 3]


def test_bad_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    deep = b"[" * 100_000
    lines = [
        b'{"a": 1}',
        b"{not json",
        b'{"a": "\xff\xfe"}',
        b"",
        b"   ",
        deep,
        b'\xef\xbb\xbf{"a": 2}',
        b'{"a": "\\ud800"}',
        b"NUL\x00",
    ]
    path.write_bytes(b"\n".join(lines))
    assert dict(iter_rows(path)) == {
        1: {"a": 1},
        2: UnreadableRow(MALFORMED),
        3: UnreadableRow(NOT_TEXT),
        6: UnreadableRow(MALFORMED),
        7: {"a": 2},
        8: {"a": "\ud800"},
        9: UnreadableRow(MALFORMED),
    }


def test_a_line_over_the_limit_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_readers, "MAX_ROW_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 5000 + '"}\n{"a": 2}\n')
    assert dict(iter_rows(path)) == {
        1: {"a": 1},
        2: UnreadableRow(row_readers.TOO_LONG),
        3: {"a": 2},
    }


def test_a_damaged_gzip_ends_with_an_unreadable_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    compressed = gzip.compress(
        "\n".join(json.dumps({"text": f"{i} {hash(str(i))}"}) for i in range(5000)).encode()
    )
    path.write_bytes(compressed[: len(compressed) // 2])
    *readable, (_, last) = iter_rows(path)
    assert last == UnreadableRow(row_readers.TRUNCATED_FILE)
    assert readable[0][0] == 1
    assert not any(isinstance(row, UnreadableRow) for _, row in readable)


def test_a_json_array_that_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=1)[:-30])
    rows = [row for _, row in iter_rows(path)]
    assert rows == [*ROWS[:2], UnreadableRow(MALFORMED)]


def test_csv_with_broken_records(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        "prompt,response\nالف,ب\nفقط یکی\nیک,دو,سه\n".encode() + b"\xff,x\n" + "پ,ت\n".encode()
    )
    first, *broken, last = [row for _, row in iter_rows(path)]
    assert first == {"prompt": "الف", "response": "ب"}
    assert last == {"prompt": "پ", "response": "ت"}
    wrong_cells = row_readers.WRONG_CELLS
    assert [row.reason for row in broken] == [wrong_cells, wrong_cells, NOT_TEXT]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "no such file"),
        ("some folder/deeper/x", None, "no such file"),
        ("empty.jsonl", b"", "empty"),
        ("notes.txt", b"text", "not known"),
        ("x.parquet", b"not parquet", "not a readable Parquet"),
    ],
)
def test_sources_that_cannot_be_read(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(iter_rows(tmp_path / name))
    assert name in error.value.location


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data file"):
        list(iter_rows(tmp_path))


def test_without_a_network_a_hub_name_fails_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args, **_more):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for read in (
        lambda: next(iter_rows("some-owner/some-set")),
        lambda: fingerprint("some-owner/some-set"),
    ):
        with pytest.raises(UserError, match="hub does not answer") as error:
            read()
        assert "local" in error.value.hint and error.value.location == "some-owner/some-set"


def test_the_fingerprint_follows_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path)
    before, folder = fingerprint(path), fingerprint(tmp_path)
    assert before == fingerprint(path)
    path.write_bytes(path.read_bytes().replace(b"1", b"7", 1))
    assert fingerprint(path) != before and fingerprint(tmp_path) != folder


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_memory_does_not_grow_with_the_file(ending: str, tmp_path: Path) -> None:
    """Five times as many rows must need no more memory. The large file has 2 to 11 MB."""

    def peak(count: int) -> int:
        path = tmp_path / f"{count}.{ending}"
        rows = [{"prompt": f"{i} " + "x" * 100, "response": "y" * 100} for i in range(count)]
        if ending == "parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif ending == "csv":
            path.write_text(
                "prompt,response\n" + "".join(f"{r['prompt']},{r['response']}\n" for r in rows)
            )
        else:
            separator, (begin, end) = ("\n", ("", "")) if ending == "jsonl" else (",\n", ("[", "]"))
            path.write_text(begin + separator.join(map(json.dumps, rows)) + end)
        del rows
        tracemalloc.start()
        num_rows = sum(1 for _ in iter_rows(path))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert num_rows == count
        return peak_bytes

    peak(100)  # the first call also imports
    small, large = peak(4_000), peak(20_000)
    assert large < small + 300_000
