"""The hyperparameter search of a method: what was tried, what it cost, what it chose."""

from __future__ import annotations

from typing import Any

from tarazu.report.analysis.study_view import MethodView, StudyView, as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import Bilingual, code, joined, listed, number, translate
from tarazu.report.render.figures import Figure
from tarazu.report.render.tables import Table, code_cell, number_cell, text_cell
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.cells import translate_all
from tarazu.report.sections.common.curves import line_figure
from tarazu.report.sections.common.method_names import joined_code


def search_view(context: Context, method: MethodView) -> dict | None:
    """Sentences, the figure and the table of a method's search; None where nothing was searched."""
    search, source = method.search, _file(method)
    if not search:
        return None
    sentences = _schedule_sentences(search, source)
    extended = [c for c in dicts_in(search.get("candidates")) if c.get("extended") is True]
    if extended:
        rates = [number(get_path(c, "settings", "learning_rate"), "rate", source) for c in extended]
        tokens = number(search.get("tokens_extended"), "count", source)
        sentences.append(translate("search.extended", rates=joined(rates), tokens=tokens))
    edges = get_path(search, "edges", default=[])
    if edges:
        sentences.append(translate("search.edge", names=joined_code(edges)))
    table, figure = _table(method, source), _figure(context, method, source)
    return {"sentences": sentences, "figure": figure, "table": table}


def _file(method: MethodView) -> str:
    return f"{method.name}/search.json"


def _schedule_sentences(search: dict, source: str) -> list[Bilingual]:
    """How the trials were trained, and the winner.

    A search.json without `schedule` is of an older version: its trials had a constant learning rate
    and were continued from round to round.
    """
    values = {
        "tokens": number(search.get("tokens"), "count", source),
        "winner": code(settings_text(search.get("winner"))),
        "loss": number(search.get("loss"), "loss", source),
    }
    schedule = search.get("schedule")
    if not isinstance(schedule, str):
        return [translate("search.continued_trials", **values)]
    sentences = [translate("search.full_schedule_trials", schedule=code(schedule), **values)]
    if schedule != "constant":
        sentences.append(translate("search.schedule_reason"))
    return sentences


def settings_text(settings: Any) -> str:
    """Settings as `name = value, name = value`."""
    if not isinstance(settings, dict):
        return "?"
    return ", ".join(
        f"{name} = {value:g}" if as_number(value) is not None else f"{name} = {value}"
        for name, value in settings.items()
    )


def search_costs(study: StudyView) -> Table:
    """Tokens and time of every method's search: one rule for all, different costs."""
    searched, rows = [method for method in study.methods if method.search], []
    for method in searched:
        search, source = method.search, _file(method)
        edges = ", ".join(map(str, get_path(search, "edges", default=[])))
        rows.append(
            [
                code_cell(method.name),
                number_cell(len(dicts_in(search.get("candidates"))), "count", source),
                number_cell(search.get("tokens"), "count", source),
                number_cell(search.get("tokens_extended"), "count", source),
                number_cell(search.get("seconds"), "seconds", source),
                code_cell(settings_text(search.get("winner"))),
                code_cell(edges) if edges else text_cell(translate("common.no")),
            ]
        )
    columns = translate_all(
        "compare.method",
        "search.candidates",
        "search.tokens",
        "search.extended_tokens",
        "phase.search",
        "search.winner",
        "search.at_edge",
    )
    files = [_file(method) for method in searched]
    return Table(translate("search.costs"), columns, rows, files, sortable=True)


def search_tokens(study: StudyView) -> list[float]:
    """The tokens of each method's search, smallest first."""
    tokens = (as_number(method.search.get("tokens")) for method in study.methods)
    return sorted(value for value in tokens if value is not None)


def _table(method: MethodView, source: str) -> Table:
    """The loss of each candidate after each round."""
    rows = [
        [
            code_cell(settings_text(candidate.get("settings"))),
            number_cell(round_.get("tokens"), "count", source),
            number_cell(round_.get("loss"), "loss", source),
        ]
        for candidate in dicts_in(method.search.get("candidates"))
        for round_ in dicts_in(candidate.get("rounds"))
    ]
    columns = translate_all("search.settings", "search.tokens", "axis.validation_loss")
    return Table(translate("search.table"), columns, rows, [source], sortable=True)


def _figure(context: Context, method: MethodView, source: str) -> Figure | None:
    """Loss against learning rate: one line for each round and each value of the other settings."""
    lines = _lines(method)
    rounds = sorted({tokens for tokens, _ in lines})
    others = sorted({other for _, other in lines})
    series = []
    for (tokens, other), points in sorted(lines.items()):
        name = translate("search.round", tokens=number(tokens, "count"))
        rates, losses = zip(*sorted(points), strict=True)
        color = rounds.index(tokens)
        series.append(
            charts.Series(
                listed([name, code(other)]) if other else name,
                list(rates),
                list(losses),
                color,
                others.index(other) if len(others) > 1 else color,
            )
        )
    if not series:
        return None
    caption = translate("search.figure", method=code(method.name))
    x, y = translate_all("axis.learning_rate", "axis.validation_loss")
    name = f"search-{method.name}"
    return line_figure(context, name, caption, series, x, y, [source], log=True)


def _lines(method: MethodView) -> dict[tuple[float, str], list[tuple[float, float]]]:
    """(learning rate, loss) of the candidates by (tokens of the round, the other settings)."""
    lines: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for candidate in dicts_in(method.search.get("candidates")):
        settings = get_path(candidate, "settings", default={})
        rate = as_number(settings.get("learning_rate"))
        other = settings_text({k: v for k, v in settings.items() if k != "learning_rate"})
        for round_ in dicts_in(candidate.get("rounds")):
            loss, tokens = as_number(round_.get("loss")), as_number(round_.get("tokens"))
            if None not in (rate, loss, tokens):
                lines.setdefault((tokens, other), []).append((rate, loss))
    return lines
