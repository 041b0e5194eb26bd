"""What the search for a method's settings tried, what it cost and what it chose."""

from __future__ import annotations

from tarazu.report.analysis.study_view import MethodView, StudyView, as_number, dicts_in, get_path
from tarazu.report.render import charts
from tarazu.report.render.bilingual import Bilingual, code, joined, listed, number, translate
from tarazu.report.render.tables import Table, code_cell, number_cell, text_cell
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.curves import line_figure


def search_view(context: Context, method: MethodView) -> dict | None:
    """Sentences, the curve of loss against learning rate, and every candidate; None where nothing was searched."""
    found, source = method.search, f"{method.name}/search.json"
    if not found:
        return None
    sentences = _how(found, source)
    beyond = [
        get_path(c, "settings", "learning_rate")
        for c in dicts_in(found.get("candidates"))
        if c.get("extended") is True
    ]
    if beyond:
        rates, tokens = (
            joined([number(rate, "rate", source) for rate in beyond]),
            found.get("tokens_extended"),
        )
        sentences.append(
            translate("search.beyond", rates=rates, tokens=number(tokens, "count", source))
        )
    edges = found.get("edges")
    if isinstance(edges, list) and edges:
        sentences.append(translate("search.edge", names=joined([code(e) for e in edges])))
    return {
        "sentences": sentences,
        "figure": _figure(context, method, source),
        "table": _table(method, source),
    }


def _how(found: dict, source: str) -> list[Bilingual]:
    """How the trials were trained (before search.json had `schedule`: at a constant rate, from round to round), and the winner."""
    winner, loss = code(_settings(found.get("winner"))), number(found.get("loss"), "loss", source)
    told = {"tokens": number(found.get("tokens"), "count", source), "winner": winner, "loss": loss}
    schedule = found.get("schedule")
    if not isinstance(schedule, str):
        return [translate("search.how", **told)]
    why = [translate("search.why")] if schedule != "constant" else []
    return [translate("search.whole", schedule=code(schedule), **told), *why]


def search_costs(study: StudyView) -> Table:
    """Tokens and time of every method's search: the rule is one for all, what it took may differ."""
    rows = []
    for method in (method for method in study.methods if method.search):
        source, edges = f"{method.name}/search.json", get_path(method.search, "edges", default=[])
        rows.append(
            [
                code_cell(method.name),
                number_cell(len(dicts_in(method.search.get("candidates"))), "count", source),
                number_cell(method.search.get("tokens"), "count", source),
                number_cell(method.search.get("tokens_extended"), "count", source),
                number_cell(method.search.get("seconds"), "seconds", source),
                code_cell(_settings(method.search.get("winner"))),
                code_cell(", ".join(map(str, edges)))
                if edges
                else text_cell(translate("common.no")),
            ]
        )
    names = (
        "search.candidates",
        "search.tokens",
        "search.beyond_tokens",
        "phase.search",
        "search.winner",
        "search.at_edge",
    )
    sources = [f"{method.name}/search.json" for method in study.methods if method.search]
    columns = [translate("compare.method"), *[translate(name) for name in names]]
    return Table(translate("search.costs"), columns, rows, sources, sortable=True)


def search_tokens(study: StudyView) -> list[float]:
    """Tokens of each method's search, least first."""
    return sorted(
        n for method in study.methods if (n := as_number(method.search.get("tokens"))) is not None
    )


def _settings(settings) -> str:
    return (
        ", ".join(
            f"{k} = {v:g}" if as_number(v) is not None else f"{k} = {v}"
            for k, v in settings.items()
        )
        if isinstance(settings, dict)
        else "?"
    )


def _table(method: MethodView, source: str) -> Table:
    rows = []
    for candidate in dicts_in(method.search.get("candidates")):
        for one in dicts_in(candidate.get("rounds")):
            rows.append(
                [
                    code_cell(_settings(candidate.get("settings"))),
                    number_cell(one.get("tokens"), "count", source),
                    number_cell(one.get("loss"), "loss", source),
                ]
            )
    return Table(
        translate("search.table"),
        [
            translate("search.settings"),
            translate("search.tokens"),
            translate("axis.validation_loss"),
        ],
        rows,
        [source],
        sortable=True,
    )


def _figure(context: Context, method: MethodView, source: str):
    """One line per round, and per value of whatever else was searched: what is left of the candidates after so many tokens."""
    lines: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for candidate in dicts_in(method.search.get("candidates")):
        settings = candidate.get("settings") if isinstance(candidate.get("settings"), dict) else {}
        rate, rest = (
            as_number(settings.get("learning_rate")),
            _settings({k: v for k, v in settings.items() if k != "learning_rate"}),
        )
        for one in dicts_in(candidate.get("rounds")):
            loss, tokens = as_number(one.get("loss")), as_number(one.get("tokens"))
            if None not in (rate, loss, tokens):
                lines.setdefault((tokens, rest), []).append((rate, loss))
    rounds, rests = sorted({tokens for tokens, _ in lines}), sorted({rest for _, rest in lines})
    series = []
    for (tokens, rest), points in sorted(lines.items()):
        told = translate("search.round", tokens=number(tokens, "count"))
        x, y = zip(*sorted(points), strict=True)
        series.append(
            charts.Series(
                listed([told, code(rest)]) if rest else told,
                list(x),
                list(y),
                rounds.index(tokens),
                rests.index(rest) if len(rests) > 1 else rounds.index(tokens),
            )
        )
    if not series:
        return None
    caption = translate("search.figure", method=code(method.name))
    return line_figure(
        context,
        f"search-{method.name}",
        caption,
        series,
        translate("axis.learning_rate"),
        translate("axis.validation_loss"),
        [source],
        log=True,
    )
