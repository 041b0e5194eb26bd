"""Answers as the page shows them: what was asked, what a good answer has, what each method said, and its score."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from markupsafe import Markup

from tarazu.report.analysis.metrics import by_id
from tarazu.report.analysis.study_view import MethodView, StudyView, get_path
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    data_text,
    number,
    translate,
    translate_or,
)
from tarazu.report.render.known_messages import translate_note
from tarazu.report.sections.chat.data import turns_view
from tarazu.report.sections.chat.metrics import sample_score
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.method_names import all_methods, method_name

ANSWER, QUESTION = 900, 700
SHOWN_BESIDE = 3  # improved and worse answers per method
ALL_TEST, ALL_READING = 12, 6  # most test rows and reading rows in the side-by-side list
KINDS = ("test", "reading")
ANSWER_AT_LEAST = (
    640  # characters that a shown answer takes in the page: a short one, its checks and its markup
)
FEWEST = 8  # designed questions shown, however little room there is


@dataclass(frozen=True)
class Answer:
    """One method's answer to one question."""

    who: Bilingual | str
    text: object
    score: Bilingual | None
    finished: bool
    failed: list  # checks that it did not pass
    passed: list


def answer_length_limit(context: Context) -> int:
    """Characters of each answer, so that all that are shown fit into the page's room."""
    methods, questions = all_methods(context.study), len(shown_ids(context))
    shown = (
        questions
        + (questions + ALL_TEST + ALL_READING) * len(methods)
        + 4 * SHOWN_BESIDE * len(context.study.methods)
    )
    return max(80, min(ANSWER, context.max_answer_chars // max(1, shown)))


def shown_ids(context: Context) -> list[str]:
    """The designed questions that the page shows: all, or as many as there is room for, of every ability alike."""
    found = designed(context.study)
    most = max(
        FEWEST, context.max_answer_chars // ANSWER_AT_LEAST // (len(all_methods(context.study)) + 1)
    )
    if len(found) <= most:
        return list(found)
    abilities: dict[str, list[str]] = {}
    for key, sample in found.items():
        abilities.setdefault(str(sample.get("ability")), []).append(key)
    turns = [key for turn in zip_longest(*abilities.values()) for key in turn if key is not None]
    kept = set(turns[:most])
    return [key for key in found if key in kept]


def designed(study: StudyView) -> dict[str, dict]:
    """Every question written for the first test, by id, as the first method that answered it has it."""
    found: dict[str, dict] = {}
    for method in all_methods(study):
        for key, sample in by_id(method.first).items():
            if str(sample.get("from")) not in KINDS:
                found.setdefault(key, sample)
    return found


def omission_note(context: Context) -> Bilingual | None:
    """What the page says where it shows a part of the designed questions."""
    shown, whole = len(shown_ids(context)), len(designed(context.study))
    return (
        translate("answers.part", shown=number(shown, "count"), all=number(whole, "count"))
        if shown < whole
        else None
    )


def answer_view(method: MethodView, sample: dict, limit: int) -> Answer:
    text = sample.get("output")
    score = sample_score(sample, score_key(sample))
    checks = checks_view(sample)
    source = method.first.file("samples.jsonl")
    return Answer(
        who=method_name(method),
        text=data_text(text, limit) if text else translate("answers.empty"),
        score=None
        if score is None
        else translate(f"answers.{score_key(sample)}", score=number(score, "points", source)),
        finished=sample.get("finished") is not False,
        failed=[text for text, ok in checks if not ok],
        passed=[text for text, ok in checks if ok],
    )


def checks_view(sample: dict) -> list[tuple[Bilingual | Markup, bool]]:
    """Each check in both languages, as far as the file names it in both, and whether the answer passed it."""
    checks, persian = (
        sample[key] if isinstance(sample.get(key), dict) else {} for key in ("checks", "checks_fa")
    )
    return [(_in_both(persian.get(text), text), bool(ok)) for text, ok in checks.items()]


def _in_both(fa: object, en: object, limit: int | None = None) -> Bilingual | Markup:
    """A question's own words in both languages; where it has one side only, that one."""
    sides = {"fa": fa, "en": en}
    whole = all(
        isinstance(side, str) and side and (limit is None or len(side) <= limit)
        for side in sides.values()
    )
    return translate_note(sides) if whole else data_text(fa or en, limit)


def score_key(sample: dict) -> str:
    """Designed questions are scored by their checks, reading by F1, test rows by chrF against the reference."""
    return (
        "checks_passed"
        if sample.get("checks")
        else "reading_f1"
        if sample.get("from") == "reading"
        else "chrf"
    )


def question_view(sample: dict, limit: int = QUESTION) -> dict:
    """What was asked, without any method's answer."""
    limit = min(QUESTION, limit)
    ability = sample.get("ability")
    return {
        "id": code(sample.get("id")),
        "ability": str(ability or sample.get("from") or ""),
        "label": translate_or(f"ability.{ability}", ability)
        if ability
        else translate(
            "answers.from_reading" if sample.get("from") == "reading" else "answers.from_test"
        ),
        "turns": turns_view(sample.get("turns"), limit),
        "good": _in_both(sample["good"], sample.get("good_en"), limit)
        if sample.get("good")
        else None,
        "reference": data_text(sample["reference"], limit) if sample.get("reference") else None,
    }


def side_by_side(context: Context) -> list[dict]:
    """Every designed question and some test rows with all methods' answers."""
    methods, limit = all_methods(context.study), answer_length_limit(context)
    answers = {method.name: by_id(method.first) for method in methods}
    ids = list(dict.fromkeys(key for found in answers.values() for key in found))
    any_of = {key: next(found[key] for found in answers.values() if key in found) for key in ids}
    kinds = {kind: [key for key in ids if any_of[key].get("from") == kind] for kind in KINDS}
    chosen = shown_ids(context) + kinds["test"][:ALL_TEST] + kinds["reading"][:ALL_READING]
    return [
        {
            **question_view(any_of[key], limit),
            "answers": [
                answer_view(method, answers[method.name][key], limit)
                for method in methods
                if key in answers[method.name]
            ],
        }
        for key in chosen
    ]


def changes(context: Context, method: MethodView) -> dict:
    """The answers that gained and lost most beside the untouched model's, by score."""
    base, limit = context.study.base, answer_length_limit(context)
    if base is None:
        return {"improved": [], "worse": [], "counts": None}
    before, after = by_id(base.first), by_id(method.first)
    scored = []
    for key in after:
        key_of = score_key(after[key])
        old, new = sample_score(before.get(key, {}), key_of), sample_score(after[key], key_of)
        if old is not None and new is not None:
            scored.append((new - old, key))
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    picked = {
        "improved": [k for d, k in scored if d > 0][:SHOWN_BESIDE],
        "worse": [k for d, k in reversed(scored) if d < 0][:SHOWN_BESIDE],
    }
    view = {
        name: [
            {
                **question_view(after[k], limit),
                "answers": [
                    answer_view(base, before[k], limit),
                    answer_view(method, after[k], limit),
                ],
            }
            for k in keys
        ]
        for name, keys in picked.items()
    }
    counts = {
        "better": sum(d > 0 for d, _ in scored),
        "worse": sum(d < 0 for d, _ in scored),
        "same": sum(d == 0 for d, _ in scored),
    }
    return {**view, "counts": counts if scored else None}


def abilities(method: MethodView) -> list[tuple[str, float, int]]:
    """(ability, share of checks passed, questions) in the file's order."""
    found = get_path(method.first.metrics, "abilities", default={})
    if not isinstance(found, dict):
        return []
    rows = [
        (name, get_path(value, "checks_passed"), get_path(value, "n", default=0))
        for name, value in found.items()
    ]
    return [
        (name, share, n)
        for name, share, n in rows
        if isinstance(share, (int, float)) and not isinstance(share, bool)
    ]
