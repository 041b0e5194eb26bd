"""What one method was set to, what it changed (the proof), and what went wrong on the way."""

from __future__ import annotations

import json

from tarazu.report.analysis.study_view import MethodView, RunView, as_number, dicts_in, get_path
from tarazu.report.render.bilingual import (
    Bilingual,
    code,
    data_text,
    number,
    translate,
    translate_or,
)
from tarazu.report.render.tables import Table, code_cell, number_cell, patterns

NAMES_SHOWN = 120


def settings_table(method: MethodView) -> Table:
    """Every hyper-parameter of the method."""
    source = method.first.file("run.json")
    settings = method.first.run_info.get("settings")
    rows = [
        [
            code_cell(key),
            code_cell(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)),
        ]
        for key, value in (settings if isinstance(settings, dict) else {}).items()
    ]
    return Table(
        translate("method.settings"),
        [translate("method.setting"), translate("common.value")],
        rows,
        [source],
    )


def targets_table(method: MethodView) -> Table:
    """Which layers the method works on: names that differ in their numbers only are one line."""
    targets = dicts_in(method.first.run_info.get("trained_tensors"))
    shapes = {
        str(t.get("name")): " × ".join(str(n) for n in get_path(t, "shape", default=[]))
        for t in targets
    }
    grouped: dict[tuple[str, str], int] = {}
    for name, shape in shapes.items():
        key = (patterns([name])[0][0], shape)
        grouped[key] = grouped.get(key, 0) + 1
    source = method.first.file("run.json")
    rows = [
        [code_cell(name), code_cell(shape), number_cell(n, "count", source)]
        for (name, shape), n in grouped.items()
    ]
    return Table(
        translate("method.targets"),
        [translate("method.pattern"), translate("model.shape"), translate("data.count")],
        rows,
        [source],
    )


def proof_view(run: RunView, told: RunView | None = None) -> dict | None:
    """The fingerprint in sentences: how many tensors, which changed, and whether that is what should have.

    Args:
        told: a run whose tensors are listed already: where the same ones changed, their names are not said again.
    """
    found, source = run.fingerprint, run.file("fingerprint.json")
    if not found:
        return None
    changed = _names(found, "changed")
    wrong = [*_names(found, "unexpectedly_changed"), *_names(found, "unexpectedly_unchanged")]
    values = {
        "tensors": number(found.get("tensors"), "count", source),
        "changed": number(len(changed), "count", source),
        "unchanged": number(found.get("unchanged"), "count", source),
    }
    good = found.get("verdict") == "ok" and not wrong
    return {
        "good": good,
        "sentence": translate("proof.ok" if good else "proof.failed", **values),
        "parameters": _trained(run),
        "wrong": [code(name) for name in wrong[:NAMES_SHOWN]],
        "digests": translate("proof.digest", digest=code(str(found.get("digest_after", ""))[:16]))
        if found.get("digest_before") == found.get("digest_after") and found.get("digest_after")
        else None,
        "groups": [(code(name), number(n, "count", source)) for name, n in patterns(changed)],
        "names": [code(name) for name in changed[:NAMES_SHOWN]],
        "more": number(len(changed) - NAMES_SHOWN, "count", source)
        if len(changed) > NAMES_SHOWN
        else None,
        "same": told is not None
        and told is not run
        and bool(changed)
        and _names(told.fingerprint, "changed") == changed,
        "file": source,
    }


def _names(found: dict, key: str) -> list[str]:
    return (
        [str(name) for name in found.get(key) or [] if name is not None]
        if isinstance(found.get(key), list)
        else []
    )


def _trained(run: RunView) -> Bilingual | None:
    source = run.file("run.json")
    trained, total = (
        as_number(run.run_info.get("trained_parameters")),
        as_number(run.run_info.get("total_parameters")),
    )
    if trained is None or not total:
        return None
    return translate(
        "proof.parameters",
        trained=number(trained, "count", source),
        total=number(total, "count", source),
        share=number(trained / total, "share", source),
    )


def training_issues(method: MethodView) -> list[Bilingual]:
    """What went wrong, run by run; one sentence that says so where nothing did."""
    found: list[Bilingual] = []
    for run in method.runs:
        found += _status(run)
        warnings: dict[str, list[dict]] = {}
        for event in run.of_kind("warning"):
            warnings.setdefault(str(event.get("kind")), []).append(event)
        for kind, events in warnings.items():
            found.append(_warning(run, kind, events))
        padding, tokens = (
            as_number(get_path(run.ledger, "tokens", "padding")),
            as_number(get_path(run.ledger, "tokens", "tokens")),
        )
        if padding and tokens and padding / (padding + tokens) > 0.2:
            found.append(
                translate(
                    "training_issue.padding",
                    share=number(padding / (padding + tokens), "percent", run.file("ledger.json")),
                )
            )
    return found or [translate("training_issue.none")]


def _status(run: RunView) -> list[Bilingual]:
    if run.status == "done":
        return []
    error = (
        data_text(run.run_info["error"], 400)
        if run.run_info.get("error")
        else translate("training_issue.no_reason")
    )
    return [
        translate(
            f"training_issue.{run.status}"
            if run.status in ("failed", "stopped", "running")
            else "training_issue.stopped",
            seed=number(run.seed, "count"),
            error=error,
        )
    ]


def _warning(run: RunView, kind: str, events: list[dict]) -> Bilingual:
    steps = ", ".join(str(e.get("step")) for e in events[:6]) + (" …" if len(events) > 6 else "")
    return translate(
        "training_issue.warning",
        kind=translate_or(f"warning.{kind}", kind),
        seed=number(run.seed, "count"),
        n=number(len(events), "count", run.file("events.jsonl")),
        steps=code(steps),
        text=data_text(events[0].get("text", ""), 300),
    )
