"""How to reproduce the study: commands, machine, time, tokens, caveats and invariants."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.study_view import (
    MethodView,
    RunView,
    StudyView,
    as_number,
    dicts_in,
    get_path,
)
from tarazu.report.render import charts
from tarazu.report.render.bilingual import code, joined, number, translate
from tarazu.report.render.figures import Figure
from tarazu.report.render.known_messages import code_paths_text
from tarazu.report.render.tables import Cell, Table, code_cell, number_cell, text_cell
from tarazu.report.sections.common.base import Context, Section
from tarazu.report.sections.common.caveats import caveats
from tarazu.report.sections.common.cells import (
    code_or_none,
    facts_table,
    first_files,
    number_cells,
    translate_all,
)
from tarazu.report.sections.common.estimates import estimates_view
from tarazu.report.sections.common.hyperparameter_search import search_costs
from tarazu.report.sections.common.invariants import invariants_view
from tarazu.report.sections.common.method_names import all_methods, method_name

FILE = "environment.json"
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


def reproduction_section(context: Context) -> Section:
    """The last section: all that another person needs to repeat the study."""
    study = context.study
    seeds = dict.fromkeys(run.seed for method in study.methods for run in method.runs)
    view = {
        **_commands_view(study),
        "environment": _environment_table(study),
        "packages": _packages_table(study),
        "ledger": ledger_table(study),
        "tokens": token_table(study),
        "searches": search_costs(study),
        "estimates": estimates_view(study),
        "figure": _phase_figure(context),
        "seeds": joined([number(seed, "count") for seed in seeds]),
        "caveats": caveats(context),
        "invariants": invariants_view(study),
    }
    return Section("reproduction", translate("section.reproduction"), "reproduction.html", view)


def _commands_view(study: StudyView) -> dict:
    """The commands that repeat the study: one for each part, and those that extended a part."""
    parts = dicts_in(study.environment.get("parts"))
    stamps = parts or [study.environment]
    extensions = [extension for stamp in stamps for extension in dicts_in(stamp.get("extended"))]
    commands = []
    for stamp in stamps:
        commands += [stamp.get("command")]
        commands += [extension.get("command") for extension in dicts_in(stamp.get("extended"))]
    commands = list(dict.fromkeys(str(command) for command in commands if command))
    if len(parts) > 1:
        title = "reproduction.repeat_parts_title"
    else:
        title = "reproduction.repeat_more" if len(commands) > 1 else "reproduction.repeat"
    notes = ["reproduction.repeat_parts"] if len(parts) > 1 else []
    notes += ["reproduction.repeat_extended"] if extensions else []
    return {
        "title": translate(title),
        "command_notes": translate_all(*notes),
        "commands": [code(command) for command in commands],
    }


def _environment_table(study: StudyView) -> Table:
    """Versions, machine and hashes."""
    env = study.environment
    device = get_path(env, "device", default={})
    versions = ("tarazu", "commit", "started", "python", "platform", "recipe_sha256")
    facts = [(f"reproduction.{key}", code_or_none(env.get(key))) for key in versions]
    facts += [
        ("reproduction.device", code_cell(device.get("name") or device.get("type") or "?")),
        ("reproduction.memory", number_cell(device.get("memory"), "bytes", FILE)),
        ("reproduction.cores", number_cell(device.get("cores"), "count", FILE)),
        ("reproduction.threads", number_cell(env.get("threads"), "count", FILE)),
        ("reproduction.data_sha256", code_or_none(study.data.get("sha256"))),
    ]
    return facts_table("reproduction.environment", facts, FILE, "data.json")


def _packages_table(study: StudyView) -> Table:
    """The version of every package that matters."""
    packages = get_path(study.environment, "packages", default={})
    rows = [[code_cell(name), code_cell(version)] for name, version in packages.items()]
    columns = translate_all("reproduction.package", "reproduction.version")
    return Table(translate("reproduction.packages"), columns, rows, [FILE])


def _run_cells(method: MethodView, run: RunView) -> list[Cell]:
    """The first two cells of a row for one run."""
    return [text_cell(method_name(method)), number_cell(run.seed, "count")]


def ledger_table(study: StudyView) -> Table:
    """The seconds that each run spent in each phase; training time is training alone."""
    runs = [(method, run) for method in all_methods(study) for run in method.runs if run.ledger]
    seconds = {run.folder: get_path(run.ledger, "seconds", default={}) for _, run in runs}
    phases = [
        phase
        for phase in PHASES
        if any(as_number(values.get(phase)) is not None for values in seconds.values())
    ]
    rows = []
    for method, run in runs:
        values = [seconds[run.folder].get(phase) for phase in phases]
        cells = number_cells(values, "seconds", run.file("ledger.json"))
        rows.append([*_run_cells(method, run), *cells])
    titles = [f"phase.{phase}" for phase in phases]
    columns = translate_all("compare.method", "reproduction.seed", *titles)
    files = [run.file("ledger.json") for _, run in runs]
    return Table(translate("reproduction.ledger"), columns, rows, files, sortable=True)


def token_table(study: StudyView) -> Table:
    """Real, supervised, padding and virtual tokens of each run, and the code paths that it took."""
    rows, files = [], []
    for method in study.methods:
        for run in (run for run in method.runs if get_path(run.ledger, "tokens")):
            counts = [get_path(run.ledger, "tokens", name) for name in TOKENS]
            cells = number_cells(counts, "count", run.file("ledger.json"))
            paths = text_cell(code_paths_text(get_path(run.ledger, "code_paths")))
            rows.append([*_run_cells(method, run), *cells, paths])
            files.append(run.file("ledger.json"))
    counts = [f"tokens.{name}" for name in TOKENS]
    titles = ("compare.method", "reproduction.seed", *counts, "reproduction.code_paths")
    table = translate("reproduction.tokens")
    return Table(table, translate_all(*titles), rows, files, sortable=True)


def _phase_figure(context: Context) -> Figure | None:
    """The time of each phase in the first run of every method."""
    methods, bars = all_methods(context.study), []
    for method in methods:
        for phase in PHASES:
            seconds = as_number(get_path(method.first.ledger, "seconds", phase))
            if seconds:
                bars.append((method.name, translate(f"phase.{phase}"), seconds))
    if not bars:
        return None
    make = partial(charts.stacked, bars, translate("axis.seconds"))
    files, caption = first_files(methods, "ledger.json"), translate("reproduction.figure")
    return context.figures.add("time-by-phase", caption, make, files)
