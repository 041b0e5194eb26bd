"""The terminal view: isolated right-to-left text, marked loss tokens, no row parsed as markup."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from chat import spelling
from rich.console import Console

from tarazu.chat.data import preview
from tarazu.chat.data.chat_template import select_template
from tarazu.chat.data.dataset import prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder: Path = tmp_path_factory.mktemp("rows")
    rows = [
        {
            "instruction": f"پرسشی دربارهٔ ترازو {i} [red]x[/red] [/] \u001b[31m",
            "output": f"پاسخ {i}\nname: Ali",
        }
        for i in range(20)
    ]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    tokenizer = spelling.gemma()
    return prepare(
        folder / "rows.jsonl", tokenizer, select_template(tokenizer), max_length=64, cache=folder
    ).summary()


def shown(data: dict, terminal: bool) -> str:
    out = io.StringIO()
    preview.show(
        data,
        Console(
            file=out,
            force_terminal=terminal,
            width=100,
            color_system="standard" if terminal else None,
        ),
    )
    return out.getvalue()


def test_rows_are_shown_as_turns_in_isolates(data: dict) -> None:
    text = shown(data, terminal=False)
    turns = data["examples"][0]["turns"]
    assert f"question \u2067{turns[0]['text']}\u2069" in text  # [red] and [/] are plain text
    assert f"answer   \u2067{turns[1]['text'].splitlines()[0]}\u2069" in text
    assert "\u2066name: Ali\u2069" in text
    assert text.count("\u2067") + text.count("\u2066") == text.count("\u2069")
    assert all(
        line.count("\u2069") == line.count("\u2067") + line.count("\u2066")
        for line in text.split("\n")
        if "question" in line
    )


def test_no_escape_sequence_of_a_row_reaches_the_terminal(data: dict) -> None:
    assert "\x1b" not in shown(data, terminal=False)


def test_tokens_under_the_loss_are_in_brackets_or_green(data: dict) -> None:
    tokens = data["examples"][0]["tokens"]
    text = preview.tokens(tokens, brackets=True).plain
    for isolate in ("\u2066", "\u2067", "\u2069"):
        text = text.replace(isolate, "")
    parts = text.split(preview.SEPARATOR)
    assert len(parts) == len(tokens)
    assert [part.startswith("[") and part.endswith("]") and len(part) > 2 for part in parts] == [
        bool(loss) for _, loss in tokens
    ]
    styled = preview.tokens(tokens, brackets=False)
    green = "".join(
        styled.plain[span.start : span.end] for span in styled.spans if "green" in str(span.style)
    )
    for isolate in ("\u2066", "\u2067", "\u2069"):
        green = green.replace(isolate, "")
    supervised = "".join(token for token, loss in tokens if loss)
    assert green == supervised.replace("\n", preview.NEWLINE).replace(" ", preview.SPACE)
    assert "in brackets" in shown(data, terminal=False)
    assert "\x1b[1;32m" in shown(data, terminal=True)


def test_the_tables_carry_the_numbers(data: dict) -> None:
    text = shown(data, terminal=False)
    for number in (
        data["structure"]["rows"],
        data["splits"]["train"]["tokens"],
        data["structure"]["lengths"]["words"]["max"],
    ):
        assert f"{number:,}" in text
    assert "control characters removed" in text and "1, 2, 3, 4, 5, …" in text


def test_long_turns_are_cut_and_wrapped_line_by_line() -> None:
    text = preview.turns(
        {"line": 3, "turns": [{"role": "assistant", "text": "واژه " * 400}]}, width=60
    ).plain
    lines = text.split("\n")[1:]
    assert len(lines) > 5 and all(
        line.count("\u2067") == line.count("\u2069") == 1 for line in lines
    )
    assert len(text) < 1000 and "…" in text
