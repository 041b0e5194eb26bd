"""Strings and explanations exist in both languages, with equal placeholders and references."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

import tarazu.report
from tarazu.report.render.bilingual import Bilingual, data_text, number, strings, translate
from tarazu.report.render.explanations import FOLDER, explain
from tarazu.report.render.known_messages import code_paths_text, recognised, translate_note
from tarazu.report.sections.captions import REPORT as CAPTIONS
from tarazu.report.sections.chat import REPORT as CHAT
from tarazu.report.sections.chat.answers import checks_view, question_view

ROOT = Path(tarazu.report.__file__).parent
LITERAL = re.compile(r"""\btranslate\(\s*["']([a-z_]+\.[\w.-]+)["']""")


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("key", sorted(strings()))
def test_both_languages_have_the_same_placeholders(key):
    fa, en = strings()[key]
    assert fields(fa) == fields(en) and fa.strip() and en.strip()


def test_every_string_key_in_the_code_exists():
    keys = {
        key
        for path in [*ROOT.rglob("*.py"), *ROOT.rglob("*.html")]
        for key in LITERAL.findall(path.read_text(encoding="utf-8"))
    }
    assert len(keys) > 150 and keys <= set(strings())


def test_every_assignment_item_has_a_title():
    assert {f"item.{number}" for number in [*CHAT.assignment, *CAPTIONS.assignment]} <= set(
        strings()
    )


def test_persian_uses_persian_letters():
    """Arabic ye and kaf look alike and sort and search apart."""
    texts = [fa for fa, _ in strings().values()] + [
        p.read_text(encoding="utf-8") for p in (FOLDER / "fa").glob("*.md")
    ]
    assert not [text[:60] for text in texts if re.search("[\u064a\u0643\u0649]", text)]


@pytest.mark.parametrize("name", sorted(p.stem for p in (FOLDER / "en").glob("*.md")))
def test_explanation_is_short_and_in_both_languages(name):
    (page,) = explain(name)
    for language in ("fa", "en"):
        words = len(page.body.plain(language).split())
        assert 70 <= words <= 230, f"{language}/{name}: {words} words"
    assert len(re.findall("[\u0600-\u06ff]", page.body.plain("fa"))) > 200
    arxiv = [
        set(re.findall(r"\d{4}\.\d{5}", page.body.plain(language))) for language in ("fa", "en")
    ]
    assert arxiv[0] == arxiv[1]


def test_data_text_is_escaped_and_cannot_change_text_direction():
    text = data_text("<b>\u202ex\u0000\ud800</b>")
    assert text == '<bdi dir="auto">&lt;b&gt;⟨U+202E⟩x⟨U+0000⟩⟨U+D800⟩&lt;/b&gt;</bdi>'
    assert "‌" in data_text("می‌شود")  # the half-space stays


def test_numbers_have_unit_and_source():
    assert number(0.1234, "percent", "a/metrics.json").plain("fa") == "12.3٪"
    assert 'title="a/metrics.json"' in number(1, "count", "a/metrics.json").en
    assert (
        number(90, "seconds").plain("en") == "90 s"
        and number(3 * 3600, "seconds").plain("fa") == "3.0 ساعت"
    )
    assert number(2_400_000_000, "bytes").plain("en") == "2.4 GB"
    change = number(-0.25, "percentage_points")  # 50% to 25% is no change of 25%
    assert (change.plain("fa"), change.plain("en")) == ("−25.0 واحد درصد", "−25.0 points")
    assert number(0.0, "percentage_points").plain("en") == "0.0 points"
    assert number(-0.5, "signed").plain("en") == "−0.500"
    assert number(-0.00001, "signed").plain("en") == "0.000"  # no "−0.000"
    for value in (None, float("nan"), "7", True, [1]):
        assert "—" in number(value).en


def test_values_are_escaped_inside_sentences():
    assert "<i>" not in translate("common.in_brackets", what="<i>").en


def test_reasons_for_repairs_and_drops_are_in_both_languages():
    """Every text constant of the modules that read rows needs a string of its own."""
    from tarazu.chat.data import conversation, dataset, persian, row_file, row_readers

    names = {
        persian: "LETTERS CONTROLS BIDI SURROGATES FORM SPACES HALF_SPACES",
        row_readers: "TOO_LONG TRUNCATED_FILE WRONG_CELLS MALFORMED_CSV",
        row_file: "TRUNCATED NOTHING_LEFT",
        dataset: "DUPLICATE IN_ANOTHER_SPLIT",
        conversation: "MALFORMED NOT_TEXT WRONG_TYPE UNKNOWN_SCHEMA UNKNOWN_ROLE NO_ANSWER "
        "NO_QUESTION EMPTY_TURN MERGED LATE_SYSTEM EARLY_ANSWER OPEN_QUESTION MARKERS",
    }
    reasons = {getattr(module, name) for module in names for name in names[module].split()}
    assert {f"reason.{reason}" for reason in reasons} <= set(strings())


def test_fixed_numbers_of_a_sentence_follow_the_digit_switch():
    text = translate("answers.checks_passed", score=number(25, "points"))
    assert '<span class="fd">۱۰۰</span>' in text.fa and text.plain("fa") == "وارسی‌ها 25.0 از 100"


def test_notes_on_caption_data_are_in_both_languages():
    from tarazu.captions import prepare_data
    from tarazu.captions.encoder import pretrained
    from tarazu.captions.settings import DataSettings

    notes = [
        pretrained._stand_in_note(pretrained.ENCODER_CONFIGS[name]) + "; tensors named as in timm"
        for name in ("efficientnet-lite0",)
    ]
    notes += [
        prepare_data._split_by(DataSettings()),
        prepare_data._split_by(DataSettings(split="karpathy")),
    ]
    for note in notes:
        found = recognised(note)
        assert isinstance(found, Bilingual) and found.plain("en") == note
    assert recognised("anything else") == "anything else"


def test_note_of_a_recipe_is_shown_in_the_language_of_the_page():
    both = translate_note({"fa": "به جای <داده>", "en": "stands in for <data>"})
    assert (both.plain("fa"), both.plain("en")) == ("به جای <داده>", "stands in for <data>")
    assert (
        'dir="rtl"' in translate_note({"fa": "rows به جای SlimOrca", "en": "rows"}).fa
    )  # though its first letters are Latin
    assert "<data>" not in both.en and translate_note("as it is") == data_text("as it is")
    assert translate_note({"fa": "تنها"}) == data_text(
        {"fa": "تنها"}
    )  # a damaged note is shown, not lost


def test_designed_question_is_shown_in_the_language_of_the_page():
    sample = {
        "good": "یکی",
        "good_en": "one",
        "checks": {"says <one>": True, "short": False},
        "checks_fa": {"says <one>": "یکی را می‌گوید"},
    }
    assert (
        question_view(sample)["good"].plain("fa") == "یکی"
        and question_view(sample)["good"].plain("en") == "one"
    )
    (said, passed), (other, failed) = checks_view(sample)
    assert (said.plain("fa"), said.plain("en")) == (
        "یکی را می‌گوید",
        "says <one>",
    ) and "<one>" not in said.en
    assert other == data_text("short") and (passed, failed) == (
        True,
        False,
    )  # a run of before has English only
    assert checks_view({"checks": {"short": True}, "checks_fa": ["damaged"]}) == [
        (data_text("short"), True)
    ]


@pytest.mark.parametrize(
    "code_paths",
    [
        {
            "attention": "FlashAttention 4",
            "layout": "packed",
            "layers": "compiled, fused LoRA, fused MLP, CUDA graphs",
            "weights": "4 bits (NF4)",
        },
        {
            "attention": "own",
            "teacher_forcing": "torch's LSTM, self-critical steps as CUDA graphs",
            "layout": "padded",
            "images": "pixels, then features kept in float16",
        },
    ],
)
def test_code_paths_are_shown_in_persian(code_paths):
    both = code_paths_text(code_paths)
    assert both.plain("en") == "; ".join(
        f"{part.replace('_', ' ')}: {path}" for part, path in code_paths.items()
    )
    persian = both.plain("fa")
    for name in ("FlashAttention 4", "NF4", "LSTM", "torch.compile", "torch", "float16"):
        persian = persian.replace(name, "")
    assert not re.search("[a-z]{2}", persian), persian


def test_unknown_code_path_is_shown_as_it_is():
    assert "no such op, alas (x.py:3)" in code_paths_text(
        {"layers": "plain, no such op, alas (x.py:3)"}
    ).plain("fa").replace("،", ",")
