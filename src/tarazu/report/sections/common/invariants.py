"""What `tarazu verify` found, where it was run: each invariant, what was compared, and by how much it differed."""

from __future__ import annotations

from markupsafe import Markup

from tarazu.report.analysis.study_view import StudyView, as_number, dicts_in, get_path
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    in_language,
    joined,
    number,
    spaced,
    strings,
    translate,
    translate_or,
)
from tarazu.report.render.known_messages import recognised
from tarazu.report.render.tables import Table, code_cell, number_cell, text_cell

FILE = "verify.json"


def invariants_view(study: StudyView) -> dict:
    """One table of all methods, how many hold, and which methods were not tried; how to try them where `verify` was not run."""
    found = study.extras["verify"]
    if not found:
        return {"absent": translate("verify.none", command=code("tarazu verify DIR"))}
    counts = {
        key: number(get_path(found, "counts", key), "count", FILE)
        for key in ("ok", "failed", "not applicable")
    }
    device = get_path(found, "device", "name")
    sentence = translate(
        "verify.counts",
        ok=counts["ok"],
        failed=counts["failed"],
        other=counts["not applicable"],
        device=code(device) if device else translate("verify.this"),
    )
    untried = [
        code(method.name)
        for method in study.methods
        if method.name not in {str(one.get("method")) for one in dicts_in(found.get("methods"))}
        and not method.untrained
    ]
    waiting = (
        [code(name) for name in found["waiting"]] if isinstance(found.get("waiting"), list) else []
    )
    checks = [
        (str(one.get("method")), check)
        for one in dicts_in(found.get("methods"))
        for check in dicts_in(one.get("checks"))
    ]
    names = (
        "compare.method",
        "reproduction.invariant",
        "reproduction.holds",
        "pairwise.difference",
        "verify.tolerance",
        "verify.compared",
    )
    return {
        "absent": None,
        "sentence": sentence,
        "waiting": translate("verify.waiting", methods=joined(waiting)) if waiting else None,
        "untried": translate("verify.untried", methods=joined(untried)) if untried else None,
        "summary": _summary(checks),
        "table": Table(
            translate("reproduction.verify"),
            [translate(name) for name in names],
            [_row(*one) for one in checks],
            [FILE],
            sortable=True,
        ),
        "good": found.get("verdict") == "ok",
    }


def _summary(checks: list[tuple[str, dict]]) -> Table:
    """One row an invariant: how many methods hold it, and the figures of the one that is closest to failing."""
    names = (
        "reproduction.invariant",
        "verify.held",
        "verify.closest",
        "pairwise.difference",
        "verify.tolerance",
        "verify.compared",
    )
    rows = []
    for name in dict.fromkeys(str(check.get("name")) for _, check in checks):
        tried = [
            (method, check)
            for method, check in checks
            if str(check.get("name")) == name and check.get("verdict") != "not applicable"
        ]
        if tried:
            rows.append(_closest(name, tried))
    return Table(translate("verify.summary"), [translate(key) for key in names], rows, [FILE])


def _closest(name: str, tried: list[tuple[str, dict]]) -> list:
    ok, failed = (
        sum(check.get("verdict") == "ok" for _, check in tried),
        [method for method, check in tried if check.get("verdict") != "ok"],
    )
    held = translate(
        "verify.held_of", ok=number(ok, "count", FILE), n=number(len(tried), "count", FILE)
    )
    method, check = max(tried, key=lambda one: _used(one[1]))
    return [
        text_cell(_named(name)),
        text_cell(spaced(held, joined([code(name) for name in failed])) if failed else held),
        code_cell(method),
        number_cell(check.get("difference"), "rate", FILE),
        number_cell(check.get("tolerance"), "rate", FILE),
        text_cell(
            _lines([recognised(check[key]) for key in ("compared", "reason") if check.get(key)])
        ),
    ]


def _used(check: dict) -> tuple[bool, float]:
    """What fails first, then the share of what is allowed that is used up."""
    difference, tolerance = (
        as_number(check.get("difference")) or 0.0,
        as_number(check.get("tolerance")) or 0.0,
    )
    return check.get("verdict") != "ok", difference / tolerance if tolerance else difference


def _named(name: str) -> object:
    return translate(f"invariant.{name}") if f"invariant.{name}" in strings() else name


def _row(method: str, check: dict) -> list:
    verdict = str(check.get("verdict"))
    return [
        code_cell(method),
        text_cell(_named(str(check.get("name", "")))),
        text_cell(translate_or(f"verify.{verdict.replace(' ', '_')}", verdict)),
        number_cell(check.get("difference"), "rate", FILE),
        number_cell(check.get("tolerance"), "rate", FILE),
        text_cell(
            _lines([recognised(check[key]) for key in ("compared", "reason") if check.get(key)])
        ),
    ]


def _lines(parts: list) -> Bilingual:
    return Bilingual(
        *(
            Markup("<br>").join(in_language(part, language) for part in parts)
            for language in ("fa", "en")
        )
    )
