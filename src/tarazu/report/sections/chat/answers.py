"""Answers as the page shows them: question, good answer, each method's answer and score."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from markupsafe import Markup

from tarazu.report.analysis.metrics import by_id
from tarazu.report.analysis.study_view import MethodView, StudyView, as_number, get_path
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

MAX_ANSWER_CHARS, MIN_ANSWER_CHARS = 900, 80
MAX_QUESTION_CHARS = 700
MAX_CHANGES = 3  # improved and worse answers shown of each method
MAX_TEST_ROWS, MAX_READING_ROWS = 12, 6  # in the list of all methods' answers
MIN_QUESTIONS = 8  # designed questions shown, however small the page must be
# Characters that a short answer takes in the page with its checks and markup.
MIN_CHARS_PER_ANSWER = 640
TEST, READING = "test", "reading"  # sources of samples; all others are designed questions


@dataclass(frozen=True)
class Answer:
    """One method's answer to one question.

    Args:
        finished: whether it ended by itself, not at the limit of tokens.
        failed, passed: the rule checks by outcome.
    """

    who: Bilingual
    text: Bilingual | Markup
    score: Bilingual | None
    finished: bool
    failed: list[Bilingual | Markup]
    passed: list[Bilingual | Markup]


def answer_length_limit(context: Context) -> int:
    """The characters shown of each answer, so that all shown answers fit into the page's budget."""
    methods, questions = all_methods(context.study), len(shown_ids(context))
    in_list = (questions + MAX_TEST_ROWS + MAX_READING_ROWS) * len(methods)
    in_changes = 4 * MAX_CHANGES * len(context.study.methods)
    shown = questions + in_list + in_changes
    limit = context.max_answer_chars // max(1, shown)
    return max(MIN_ANSWER_CHARS, min(MAX_ANSWER_CHARS, limit))


def shown_ids(context: Context) -> list[str]:
    """The designed questions on the page: all, or equally many of each ability."""
    questions = designed_questions(context.study)
    columns = len(all_methods(context.study)) + 1
    limit = max(MIN_QUESTIONS, context.max_answer_chars // MIN_CHARS_PER_ANSWER // columns)
    if len(questions) <= limit:
        return list(questions)
    by_ability: dict[str, list[str]] = {}
    for key, sample in questions.items():
        by_ability.setdefault(str(sample.get("ability")), []).append(key)
    # One question of each ability in turn, until the limit is reached.
    in_turn = [key for keys in zip_longest(*by_ability.values()) for key in keys if key is not None]
    kept = set(in_turn[:limit])
    return [key for key in questions if key in kept]


def designed_questions(study: StudyView) -> dict[str, dict]:
    """Every designed question by id, with the answer of the first method that has it."""
    questions: dict[str, dict] = {}
    for method in all_methods(study):
        for key, sample in by_id(method.first).items():
            if sample.get("from") not in (TEST, READING):
                questions.setdefault(key, sample)
    return questions


def omission_note(context: Context) -> Bilingual | None:
    """How many of the designed questions are shown, where it is not all of them."""
    shown, total = len(shown_ids(context)), len(designed_questions(context.study))
    if shown == total:
        return None
    return translate("answers.part", shown=number(shown, "count"), all=number(total, "count"))


def answer_view(method: MethodView, sample: dict, limit: int) -> Answer:
    """One answer, cut at `limit` characters."""
    key, text = score_key(sample), sample.get("output")
    score = sample_score(sample, key)
    checks = checks_view(sample)
    shown = number(score, "points", method.first.file("samples.jsonl"))
    return Answer(
        who=method_name(method),
        text=data_text(text, limit) if text else translate("answers.empty"),
        score=None if score is None else translate(f"answers.{key}", score=shown),
        finished=sample.get("finished") is not False,
        failed=[text for text, passed in checks if not passed],
        passed=[text for text, passed in checks if passed],
    )


def checks_view(sample: dict) -> list[tuple[Bilingual | Markup, bool]]:
    """Each rule check, in both languages where known, and whether the answer passed it."""
    checks = get_path(sample, "checks", default={})
    persian = get_path(sample, "checks_fa", default={})
    return [(_question_text(persian.get(text), text), bool(ok)) for text, ok in checks.items()]


def _question_text(fa: object, en: object, limit: int | None = None) -> Bilingual | Markup:
    """A question's text in both languages, or in one where it has only one or is too long."""
    sides = {"fa": fa, "en": en}
    texts = [side for side in sides.values() if isinstance(side, str) and side]
    if len(texts) == 2 and (limit is None or max(map(len, texts)) <= limit):
        return translate_note(sides)
    return data_text(fa or en, limit)


def score_key(sample: dict) -> str:
    """The score that is shown: rule checks, else F1 for reading comprehension, else chrF."""
    if sample.get("checks"):
        return "checks_passed"
    return "reading_f1" if sample.get("from") == READING else "chrf"


def question_view(sample: dict, limit: int = MAX_QUESTION_CHARS) -> dict:
    """A question without any answer, cut at `limit` characters."""
    limit = min(MAX_QUESTION_CHARS, limit)
    ability, good, reference = (sample.get(key) for key in ("ability", "good", "reference"))
    source = "reading" if sample.get("from") == READING else "test"
    label = translate(f"answers.from_{source}")
    return {
        "id": code(sample.get("id")),
        "ability": str(ability or sample.get("from") or ""),
        "label": translate_or(f"ability.{ability}", ability) if ability else label,
        "turns": turns_view(sample.get("turns"), limit),
        "good": _question_text(good, sample.get("good_en"), limit) if good else None,
        "reference": data_text(reference, limit) if reference else None,
    }


def side_by_side(context: Context) -> list[dict]:
    """Designed questions, some test rows and some reading comprehension, with all answers."""
    methods, limit = all_methods(context.study), answer_length_limit(context)
    answers = {method.name: by_id(method.first) for method in methods}
    samples: dict[str, dict] = {}
    for by_key in answers.values():
        samples = {**by_key, **samples}  # the first method's sample stands for the question
    ids = list(dict.fromkeys(key for by_key in answers.values() for key in by_key))
    test_rows = [key for key in ids if samples[key].get("from") == TEST]
    reading_rows = [key for key in ids if samples[key].get("from") == READING]
    shown = shown_ids(context) + test_rows[:MAX_TEST_ROWS] + reading_rows[:MAX_READING_ROWS]
    return [
        {
            **question_view(samples[key], limit),
            "answers": [
                answer_view(method, answers[method.name][key], limit)
                for method in methods
                if key in answers[method.name]
            ],
        }
        for key in shown
    ]


def answer_changes(context: Context, method: MethodView) -> dict:
    """The answers whose score rose and fell most against the base model's, and how many did."""
    base, limit = context.study.base, answer_length_limit(context)
    if base is None:
        return {"improved": [], "worse": [], "counts": None}
    before, after = by_id(base.first), by_id(method.first)
    changes = _score_changes(before, after)
    improved = [key for change, key in changes if change > 0][:MAX_CHANGES]
    worse = [key for change, key in reversed(changes) if change < 0][:MAX_CHANGES]

    def both_answers(key: str) -> dict:
        answers = [answer_view(base, before[key], limit), answer_view(method, after[key], limit)]
        return {**question_view(after[key], limit), "answers": answers}

    counts = {
        "better": sum(change > 0 for change, _ in changes),
        "worse": sum(change < 0 for change, _ in changes),
        "same": sum(change == 0 for change, _ in changes),
    }
    return {
        "improved": [both_answers(key) for key in improved],
        "worse": [both_answers(key) for key in worse],
        "counts": counts if changes else None,
    }


def _score_changes(before: dict[str, dict], after: dict[str, dict]) -> list[tuple[float, str]]:
    """(change of score, id) of every answer that was scored twice, the largest gain first."""
    changes = []
    for key, sample in after.items():
        score = score_key(sample)
        old, new = sample_score(before.get(key, {}), score), sample_score(sample, score)
        if old is not None and new is not None:
            changes.append((new - old, key))
    return sorted(changes, key=lambda change: (-change[0], change[1]))


def abilities(method: MethodView) -> list[tuple[str, float, int]]:
    """(ability, fraction of checks passed, questions) in the order of the file."""
    by_name = get_path(method.first.metrics, "abilities", default={})
    rows = [
        (name, as_number(get_path(value, "checks_passed")), get_path(value, "n", default=0))
        for name, value in by_name.items()
    ]
    return [(name, fraction, n) for name, fraction, n in rows if fraction is not None]
