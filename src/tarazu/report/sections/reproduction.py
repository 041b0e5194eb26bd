"""Section 8: the machine, where the time went, seeds, hashes, caveats, and what repeats it all."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.study_view import StudyView, as_number, dicts_in, get_path, seeds_of
from tarazu.report.render import charts
from tarazu.report.render.bilingual import Bilingual, code, joined, number, translate
from tarazu.report.render.known_messages import code_paths_text, translate_known, translate_note
from tarazu.report.render.tables import Table, code_cell, number_cell, pairs_table, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.estimates import estimates_view
from tarazu.report.sections.common.hyperparameter_search import search_costs, search_tokens
from tarazu.report.sections.common.invariants import invariants_view
from tarazu.report.sections.common.method_names import all_methods, method_name

PHASES = (
    "load",
    "tokenise",
    "search",
    "train",
    "validate",
    "generate",
    "evaluate",
    "checkpoint",
    "fingerprint",
)
TOKENS = ("rows", "tokens", "supervised", "padding", "virtual")
SMALL_TEST = 100


def reproduction_section(context: Context) -> Section:
    study = context.study
    commands, parts = _commands(study), len(dicts_in(study.environment.get("parts")))
    view = {
        "environment": _environment(study),
        "packages": _packages(study),
        "ledger": ledger_table(study),
        "tokens": token_table(study),
        "searches": search_costs(study),
        "expected": estimates_view(study),
        "figure": _figure(context),
        "seeds": joined(
            [
                number(s, "count")
                for s in dict.fromkeys(run.seed for method in study.methods for run in method.runs)
            ]
        ),
        "caveats": caveats(context),
        "commands": [code(command) for command in commands],
        "repeat": translate(
            "reproduction.repeat_parts_title"
            if parts > 1
            else "reproduction.repeat_more"
            if len(commands) > 1
            else "reproduction.repeat"
        ),
        "repeat_how": [
            translate(f"reproduction.repeat_{key}")
            for key, true in (("parts", parts > 1), ("extended", _extensions(study)))
            if true
        ],
        "verify": invariants_view(study),
    }
    return Section("reproduction", translate("section.reproduction"), "reproduction.html", view)


def _commands(study: StudyView) -> list[str]:
    """What makes the study again: its command, or those of all its parts, each with those that extended it."""
    found = [
        one.get("command")
        for part in _stamps(study)
        for one in (part, *dicts_in(part.get("extended")))
    ]
    return list(dict.fromkeys(str(command) for command in found if command))


def _stamps(study: StudyView) -> list[dict]:
    return dicts_in(study.environment.get("parts")) or [study.environment]


def _extensions(study: StudyView) -> bool:
    return any(dicts_in(part.get("extended")) for part in _stamps(study))


def _environment(study: StudyView) -> Table:
    env, file = study.environment, "environment.json"
    device = get_path(env, "device", default={})
    pairs = [
        (translate(f"reproduction.{key}"), code_cell(env[key]) if env.get(key) else None)
        for key in ("tarazu", "commit", "started", "python", "platform", "recipe_sha256")
    ]
    pairs += [
        (
            translate("reproduction.device"),
            code_cell(get_path(device, "name") or get_path(device, "type") or "?"),
        ),
        (translate("reproduction.memory"), number_cell(get_path(device, "memory"), "bytes", file)),
        (translate("reproduction.cores"), number_cell(get_path(device, "cores"), "count", file)),
        (translate("reproduction.threads"), number_cell(env.get("threads"), "count", file)),
        (
            translate("reproduction.data_sha256"),
            code_cell(study.data["sha256"]) if study.data.get("sha256") else None,
        ),
    ]
    return pairs_table(
        translate("reproduction.environment"),
        pairs,
        [translate("common.what"), translate("common.value")],
        [file, "data.json"],
    )


def _packages(study: StudyView) -> Table:
    found = get_path(study.environment, "packages", default={})
    rows = [
        [code_cell(name), code_cell(version)]
        for name, version in (found.items() if isinstance(found, dict) else ())
    ]
    return Table(
        translate("reproduction.packages"),
        [translate("reproduction.package"), translate("reproduction.version")],
        rows,
        ["environment.json"],
    )


def ledger_table(study: StudyView) -> Table:
    """Seconds by phase for every run: training time is training alone."""
    runs = [(method, run) for method in all_methods(study) for run in method.runs if run.ledger]
    phases = [
        p
        for p in PHASES
        if any(as_number(get_path(run.ledger, "seconds", p)) is not None for _, run in runs)
    ]
    rows = [
        [
            text_cell(method_name(method)),
            number_cell(run.seed, "count"),
            *[
                number_cell(get_path(run.ledger, "seconds", p), "seconds", run.file("ledger.json"))
                for p in phases
            ],
        ]
        for method, run in runs
    ]
    return Table(
        translate("reproduction.ledger"),
        [
            translate("compare.method"),
            translate("reproduction.seed"),
            *[translate(f"phase.{p}") for p in phases],
        ],
        rows,
        [run.file("ledger.json") for _, run in runs],
        sortable=True,
    )


def token_table(study: StudyView) -> Table:
    """Tokens with and without padding and virtual tokens: the budget counts the real ones."""
    runs = [
        (method, run)
        for method in study.methods
        for run in method.runs
        if get_path(run.ledger, "tokens")
    ]
    rows = [
        [
            text_cell(method_name(method)),
            number_cell(run.seed, "count"),
            *[
                number_cell(get_path(run.ledger, "tokens", t), "count", run.file("ledger.json"))
                for t in TOKENS
            ],
            text_cell(code_paths_text(get_path(run.ledger, "code_paths"))),
        ]
        for method, run in runs
    ]
    return Table(
        translate("reproduction.tokens"),
        [
            translate("compare.method"),
            translate("reproduction.seed"),
            *[translate(f"tokens.{t}") for t in TOKENS],
            translate("reproduction.paths"),
        ],
        rows,
        [run.file("ledger.json") for _, run in runs],
        sortable=True,
    )


def _figure(context: Context):
    rows = []
    for method in all_methods(context.study):
        for phase in PHASES:
            seconds = as_number(get_path(method.first.ledger, "seconds", phase))
            if seconds:
                rows.append((method.name, translate(f"phase.{phase}"), seconds))
    if not rows:
        return None
    make = partial(charts.stacked, rows, translate("axis.seconds"))
    return context.figures.add(
        "time-by-phase",
        translate("reproduction.figure"),
        lambda language: make(language=language),
        [method.first.file("ledger.json") for method in all_methods(context.study)],
    )


def caveats(context: Context) -> list[Bilingual]:
    """What a careful reader should hold against these numbers, found from the folder itself."""
    study, found = context.study, []
    if study.data.get("note"):
        found.append(translate("caveat.note", note=translate_note(study.data["note"])))
    if get_path(study.model, "encoder", "weights_note"):
        found.append(
            translate(
                "caveat.note",
                note=translate_known(get_path(study.model, "encoder", "weights_note")),
            )
        )
    if all(len(method.runs) == 1 for method in study.methods):
        found.append(translate("caveat.one_seed"))
    elif len({len(method.measured) for method in study.methods}) > 1:
        found.append(translate("caveat.uneven_seeds"))
    missing = missing_seeds(study)
    if missing:
        found.append(
            translate(
                "caveat.missing_seeds",
                n=number(len(missing), "count"),
                seeds=joined([number(s, "count") for s in missing]),
            )
        )
    size = next((i.rows for i in context.comparison.intervals.values()), None)
    if size is not None and size < SMALL_TEST:
        found.append(translate("caveat.small_test", rows=number(size, "count")))
    spent = search_tokens(study)
    if spent and spent[0] < spent[-1]:
        found.append(
            translate(
                "caveat.search_uneven",
                least=number(spent[0], "count"),
                most=number(spent[-1], "count"),
            )
        )
    edges = [method.name for method in study.methods if method.search.get("edges")]
    if edges:
        found.append(translate("caveat.edges", methods=joined([code(n) for n in edges])))
    if context.comparison.rows_differ:
        found.append(
            translate(
                "caveat.rows_differ",
                methods=joined([code(n) for n in context.comparison.rows_differ]),
            )
        )
    if not any(method.search for method in study.methods):
        found.append(translate("caveat.no_search"))
    if get_path(study.environment, "device", "type") == "cpu":
        found.append(translate("caveat.cpu"))
    found += _parts(study)
    if any(run.status != "done" for method in study.methods for run in method.runs):
        found.append(translate("caveat.unfinished"))
    if study.problems:
        found.append(translate("caveat.broken", files=joined([code(p) for p in study.problems])))
    return found


def missing_seeds(study: StudyView) -> list[int]:
    """Seeds that the recipe asks for and of which no method has come to its end."""
    asked = study.settings.get("seeds")
    there = {run.seed for method in study.methods for run in method.measured}
    return (
        [seed for seed in asked if isinstance(seed, int) and seed not in there]
        if isinstance(asked, list) and there
        else []
    )


def _parts(study: StudyView) -> list[Bilingual]:
    """Of a study that `tarazu merge` put together: what ran where, and whether seconds compare."""
    parts = dicts_in(study.environment.get("parts"))
    if len(parts) < 2:
        return []
    devices = [get_path(part, "device", "name") or "?" for part in parts]
    told = [
        translate("caveat.part", device=code(device), methods=joined(_named(part, parts)))
        for device, part in zip(devices, parts, strict=True)
    ]
    found = [translate("caveat.parts", n=number(len(parts), "count"), parts=joined(told))]
    return found + ([translate("caveat.parts_differ")] if len(set(devices)) > 1 else [])


def _named(part: dict, parts: list[dict]) -> list:
    """A part's methods; with its seeds, those of which another part has seeds too."""
    on_other_device = {
        str(name)
        for other in parts
        if other is not part
        for name in get_path(other, "methods", default=[])
    }
    found = []
    for name in map(str, get_path(part, "methods", default=[])):
        seeds = (
            joined([number(seed, "count") for seed in seeds_of(part, name)])
            if name in on_other_device and seeds_of(part, name)
            else None
        )
        found.append(
            translate("caveat.part_seeds", method=code(name), seeds=seeds) if seeds else code(name)
        )
    return found
