"""`docs/assignment.md` lists every item of the assignment with paths that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tarazu
from tarazu.report.sections.captions.assignment import ASSIGNMENT as CAPTIONS
from tarazu.report.sections.chat.assignment import ASSIGNMENT as CHAT

SOURCE = Path(tarazu.__file__).parent
ROOT = SOURCE.parents[1]
PAGE = ROOT / "docs" / "assignment.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not a checkout")


def rows() -> list[list[str]]:
    """The cells of each line that begins with an item's number."""
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if re.match(r"\| [TCB]\d", line)
    ]


def missing(cell: str) -> list[str]:
    """Paths in backticks that do not exist: from the package, the root, or the previous path."""
    lost, beside = [], SOURCE
    for name in re.findall(r"`([\w./*-]+(?:\.py|\.md|\.yaml|/))`", cell):
        found = next(
            (base for base in (SOURCE, ROOT, beside) if list(base.glob(name.rstrip("/")))), None
        )
        lost += [] if found else [name]
        beside = ((found or beside) / name.replace("*", "en")).parent
    return lost


def test_every_item_is_listed():
    named = {re.match(r"\w+(\.\d)?", row[0])[0] for row in rows()}
    assert {*CHAT, *CAPTIONS, *(f"B{number}" for number in range(1, 7))} <= named


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:6])
def test_paths_of_an_item_exist(row):
    assert missing(row[-1]) == []
    assert missing(row[1]) == []


def test_a_missing_path_is_detected():
    assert missing("`engine/trainer.py`, `no_such.py`") == ["no_such.py"]
