"""The settings of a method, proof of which tensors it changed, and the issues of its training."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

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
from tarazu.report.sections.common.cells import shape_text, translate_all

MAX_NAMES = 120  # tensor names listed in the page; fingerprint.json has all
MAX_STEPS = 6  # steps named for each kind of warning
PADDING_ISSUE = 0.2  # a larger fraction of padding is reported as an issue
UNFINISHED = ("failed", "stopped", "running")


def settings_table(method: MethodView) -> Table:
    """Every hyperparameter of the method."""
    settings = get_path(method.first.run_info, "settings", default={})
    rows = [[code_cell(name), code_cell(_setting_text(value))] for name, value in settings.items()]
    columns = translate_all("method.setting", "common.value")
    return Table(translate("method.settings"), columns, rows, [method.first.file("run.json")])


def _setting_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def targets_table(method: MethodView) -> Table:
    """The tensors that the method trains; names that differ only in their numbers share a row."""
    source = method.first.file("run.json")
    shapes = {
        str(target.get("name")): shape_text(get_path(target, "shape", default=[]))
        for target in dicts_in(method.first.run_info.get("trained_tensors"))
    }
    counts = Counter((patterns([name])[0][0], shape) for name, shape in shapes.items())
    rows = [
        [code_cell(pattern), code_cell(shape), number_cell(count, "count", source)]
        for (pattern, shape), count in counts.items()
    ]
    columns = translate_all("method.pattern", "model.shape", "data.count")
    return Table(translate("method.targets"), columns, rows, [source])


def proof_view(run: RunView, reference: RunView | None = None) -> dict | None:
    """The fingerprint of a run: which tensors changed, and whether these are the ones that should.

    Args:
        reference: a run whose tensor names are listed already. Where this run changed the same
            tensors, their names are not listed again.

    Returns:
        What `method_parts.html` shows, or None where the run has no fingerprint.
    """
    fingerprint, source = run.fingerprint, run.file("fingerprint.json")
    if not fingerprint:
        return None
    changed = _names(fingerprint, "changed")
    unexpected = [
        *_names(fingerprint, "unexpectedly_changed"),
        *_names(fingerprint, "unexpectedly_unchanged"),
    ]
    good = fingerprint.get("verdict") == "ok" and not unexpected
    sentence = translate(
        "proof.ok" if good else "proof.failed",
        tensors=number(fingerprint.get("tensors"), "count", source),
        changed=number(len(changed), "count", source),
        unchanged=number(fingerprint.get("unchanged"), "count", source),
    )
    hidden = len(changed) - MAX_NAMES
    return {
        "good": good,
        "sentence": sentence,
        "parameters": _parameters_sentence(run),
        "unexpected": [code(name) for name in unexpected[:MAX_NAMES]],
        "digests": _digest_sentence(fingerprint),
        "groups": [(code(name), number(n, "count", source)) for name, n in patterns(changed)],
        "names": [code(name) for name in changed[:MAX_NAMES]],
        "more": number(hidden, "count", source) if hidden > 0 else None,
        "same": _changed_the_same(changed, run, reference),
        "file": source,
    }


def _names(fingerprint: dict, key: str) -> list[str]:
    return [str(name) for name in get_path(fingerprint, key, default=[]) if name is not None]


def _changed_the_same(changed: list[str], run: RunView, reference: RunView | None) -> bool:
    """Whether another run changed the same tensors as this one."""
    if reference is None or reference is run or not changed:
        return False
    return _names(reference.fingerprint, "changed") == changed


def _digest_sentence(fingerprint: dict) -> Bilingual | None:
    """The digest of the frozen tensors, where it is the same before and after training."""
    digest = fingerprint.get("digest_after")
    if not digest or digest != fingerprint.get("digest_before"):
        return None
    return translate("proof.digest", digest=code(str(digest)[:16]))


def _parameters_sentence(run: RunView) -> Bilingual | None:
    """How many of all parameters were trained."""
    source = run.file("run.json")
    trained = as_number(run.run_info.get("trained_parameters"))
    total = as_number(run.run_info.get("total_parameters"))
    if trained is None or not total:
        return None
    return translate(
        "proof.parameters",
        trained=number(trained, "count", source),
        total=number(total, "count", source),
        fraction=number(trained / total, "share", source),
    )


def training_issues(method: MethodView) -> list[Bilingual]:
    """Status, warnings and padding of each run; one sentence where there are no issues."""
    issues: list[Bilingual] = []
    for run in method.runs:
        if run.status != "done":
            issues.append(_status_sentence(run))
        warnings: dict[str, list[dict]] = {}
        for event in run.of_kind("warning"):
            warnings.setdefault(str(event.get("kind")), []).append(event)
        issues += [_warning_sentence(run, kind, events) for kind, events in warnings.items()]
        fraction = _padding_fraction(run)
        if fraction > PADDING_ISSUE:
            shown = number(fraction, "percent", run.file("ledger.json"))
            issues.append(translate("training_issue.padding", fraction=shown))
    return issues or [translate("training_issue.none")]


def _status_sentence(run: RunView) -> Bilingual:
    """Why a run did not end."""
    status = run.status if run.status in UNFINISHED else "stopped"
    error = run.run_info.get("error")
    reason = data_text(error, 400) if error else translate("training_issue.no_reason")
    return translate(f"training_issue.{status}", seed=number(run.seed, "count"), error=reason)


def _padding_fraction(run: RunView) -> float:
    """Padding tokens among all tokens that were computed."""
    padding = as_number(get_path(run.ledger, "tokens", "padding"))
    tokens = as_number(get_path(run.ledger, "tokens", "tokens"))
    return padding / (padding + tokens) if padding and tokens else 0.0


def _warning_sentence(run: RunView, kind: str, events: list[dict]) -> Bilingual:
    """One kind of warning: how often, at which steps, and the text of the first one."""
    steps = ", ".join(str(event.get("step")) for event in events[:MAX_STEPS])
    return translate(
        "training_issue.warning",
        kind=translate_or(f"warning.{kind}", kind),
        seed=number(run.seed, "count"),
        n=number(len(events), "count", run.file("events.jsonl")),
        steps=code(f"{steps} …" if len(events) > MAX_STEPS else steps),
        text=data_text(events[0].get("text", ""), 300),
    )
