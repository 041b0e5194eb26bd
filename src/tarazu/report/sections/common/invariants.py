"""What `tarazu verify` found: each invariant, what was compared, and by how much it differed."""

from __future__ import annotations

from markupsafe import Markup

from tarazu.report.analysis.study_view import StudyView, as_number, dicts_in, get_path
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    has,
    in_language,
    number,
    spaced,
    translate,
    translate_or,
)
from tarazu.report.render.known_messages import recognised
from tarazu.report.render.tables import Cell, Table, code_cell, number_cell, text_cell
from tarazu.report.sections.common.cells import translate_all
from tarazu.report.sections.common.method_names import joined_code

FILE = "verify.json"
NOT_APPLICABLE = "not applicable"


def invariants_view(study: StudyView) -> dict:
    """The result of `tarazu verify`, or how to run it where the study has none."""
    verify = study.extras["verify"]
    if not verify:
        return {"absent": translate("verify.none", command=code("tarazu verify DIR"))}
    entries = dicts_in(verify.get("methods"))
    checks = [(str(e.get("method")), check) for e in entries for check in dicts_in(e.get("checks"))]
    checked = {str(entry.get("method")) for entry in entries}
    unchecked = [m.name for m in study.methods if m.name not in checked and not m.untrained]
    waiting = get_path(verify, "waiting", default=[])
    return {
        "absent": None,
        "sentence": _counts_sentence(verify),
        "not_yet_trained": translate("verify.not_yet_trained", methods=joined_code(waiting))
        if waiting
        else None,
        "unchecked": translate("verify.unchecked", methods=joined_code(unchecked))
        if unchecked
        else None,
        "summary": _summary_table(checks),
        "table": _table(checks),
        "good": verify.get("verdict") == "ok",
    }


def _counts_sentence(verify: dict) -> Bilingual:
    """How many checks held, failed and did not apply, and on which device."""
    device = get_path(verify, "device", "name")
    counts = {
        name: number(get_path(verify, "counts", verdict), "count", FILE)
        for name, verdict in (("ok", "ok"), ("failed", "failed"), ("other", NOT_APPLICABLE))
    }
    place = code(device) if device else translate("verify.this_machine")
    return translate("verify.counts", device=place, **counts)


def _table(checks: list[tuple[str, dict]]) -> Table:
    """One row for each method and check."""
    rows = []
    for method, check in checks:
        verdict = str(check.get("verdict"))
        outcome = translate_or(f"verify.{verdict.replace(' ', '_')}", verdict)
        name = _invariant_name(str(check.get("name", "")))
        rows.append([code_cell(method), text_cell(name), text_cell(outcome), *_measured(check)])
    columns = translate_all(
        "compare.method",
        "reproduction.invariant",
        "reproduction.holds",
        "pairwise.difference",
        "verify.tolerance",
        "verify.compared",
    )
    return Table(translate("reproduction.verify"), columns, rows, [FILE], sortable=True)


def _summary_table(checks: list[tuple[str, dict]]) -> Table:
    """One row for each invariant: how many methods hold it, and the one closest to failing."""
    rows = []
    for name in dict.fromkeys(str(check.get("name")) for _, check in checks):
        applicable = [
            (method, check)
            for method, check in checks
            if str(check.get("name")) == name and check.get("verdict") != NOT_APPLICABLE
        ]
        if applicable:
            rows.append(_summary_row(name, applicable))
    columns = translate_all(
        "reproduction.invariant",
        "verify.held",
        "verify.closest",
        "pairwise.difference",
        "verify.tolerance",
        "verify.compared",
    )
    return Table(translate("verify.summary"), columns, rows, [FILE])


def _summary_row(name: str, checks: list[tuple[str, dict]]) -> list[Cell]:
    """The row of one invariant: methods that failed it are named."""
    failed = [method for method, check in checks if check.get("verdict") != "ok"]
    passed, total = len(checks) - len(failed), len(checks)
    held = translate(
        "verify.held_of", ok=number(passed, "count", FILE), n=number(total, "count", FILE)
    )
    if failed:
        held = spaced(held, joined_code(failed))
    method, check = max(checks, key=lambda item: _closeness_to_failing(item[1]))
    return [
        text_cell(_invariant_name(name)),
        text_cell(held),
        code_cell(method),
        *_measured(check),
    ]


def _closeness_to_failing(check: dict) -> tuple[bool, float]:
    """A sort key: failed checks last, then by the fraction of the tolerance that is used."""
    difference = as_number(check.get("difference")) or 0.0
    tolerance = as_number(check.get("tolerance")) or 0.0
    return check.get("verdict") != "ok", difference / tolerance if tolerance else difference


def _measured(check: dict) -> list[Cell]:
    """Difference, tolerance, and in words what was compared and why it may differ."""
    texts = [recognised(check[key]) for key in ("compared", "reason") if check.get(key)]
    lines = Bilingual(
        *(Markup("<br>").join(in_language(t, language) for t in texts) for language in ("fa", "en"))
    )
    return [
        number_cell(check.get("difference"), "rate", FILE),
        number_cell(check.get("tolerance"), "rate", FILE),
        text_cell(lines),
    ]


def _invariant_name(name: str) -> Bilingual | str:
    """The name of an invariant in both languages; as it is in the file where it is unknown."""
    return translate(f"invariant.{name}") if has(f"invariant.{name}") else name
