"""A method's curves: the figure, and what they say in sentences with their numbers."""

from __future__ import annotations

from functools import partial

from tarazu.report.analysis.curves import analyse, curve, downsample
from tarazu.report.analysis.study_view import MethodView
from tarazu.report.render import charts
from tarazu.report.render.bilingual import Bilingual, code, number, translate
from tarazu.report.render.figures import Figure
from tarazu.report.sections.common.base import EPOCHS, Context


def axis_of(context: Context) -> tuple[str, Bilingual, str]:
    """The field of events.jsonl along which the task's losses are drawn, its title and its number format."""
    field = context.task.curve_axis
    return field, translate(f"axis.{field}"), "two" if field == EPOCHS else "count"


def loss_figure(context: Context, method: MethodView) -> Figure | None:
    """Training and validation loss of the first run, and the validation loss of the other seeds."""
    field, title, _ = axis_of(context)
    train, size = downsample(curve(method.first, "step", field))
    validation = curve(method.first, "validation", field)
    series = []
    if train:
        series.append(charts.Series(translate("curve.train"), train.x, train.y, 0, 0))
    if validation:
        series.append(
            charts.Series(translate("curve.validation"), validation.x, validation.y, 1, 1)
        )
    for i, run in enumerate(run for run in method.runs if run is not method.first):
        other = curve(run, "validation", field)
        if other:
            series.append(
                charts.Series(
                    translate("curve.validation_seed", seed=number(run.seed, "count")),
                    other.x,
                    other.y,
                    2 + i,
                    2,
                )
            )
    if not series:
        return None
    caption = translate("curve.caption", method=code(method.name))
    if size > 1:
        caption = translate(
            "curve.caption_thinned", method=code(method.name), size=number(size, "count")
        )
    return line_figure(
        context,
        f"curves-{method.name}",
        caption,
        series,
        title,
        translate("axis.loss"),
        [run.file("events.jsonl") for run in method.runs],
    )


def line_figure(
    context: Context,
    name: str,
    caption: Bilingual,
    series: list[charts.Series],
    x: Bilingual,
    y: Bilingual,
    sources: list[str],
    log: bool = False,
) -> Figure:
    """Lines as a figure that the page's script can also draw."""
    data = {
        "x": sides(x),
        "y": sides(y),
        "log": log,
        "series": [
            {
                "name": sides(s.name),
                "x": s.x,
                "y": s.y,
                "color": charts.PALETTE[s.color % len(charts.PALETTE)],
                "dash": charts.DASHES[s.dash % 4],
            }
            for s in series
        ],
    }
    make = partial(charts.lines, series, x, y, log=log)
    return context.figures.add(name, caption, make, sources, data)


def sides(text: Bilingual | str) -> dict[str, str]:
    """A label in both languages, for the page's script."""
    return {language: charts.label_text(text, language) for language in ("fa", "en")}


def curve_sentences(context: Context, method: MethodView) -> list[Bilingual]:
    """The analysis of one method's curves, from the numbers alone."""
    field, _, format = axis_of(context)
    facts, source = analyse(method.first, field), method.first.file("events.jsonl")
    loss = partial(number, format="loss", source=source)
    at = partial(number, format=format, source=source)
    found: list[Bilingual] = []
    if facts.train_first is not None:
        found.append(
            translate(
                "curve.train_fell", first=loss(facts.train_first), last=loss(facts.train_last)
            )
        )
    if facts.validation_first is not None:
        values = {
            "first": loss(facts.validation_first),
            "best": loss(facts.validation_best),
            "last": loss(facts.validation_last),
            "at": at(facts.best_at),
        }
        found.append(translate(f"curve.validation_{field}", **values))
    if facts.flat_at is not None:
        found.append(translate(f"curve.flat_{field}", at=at(facts.flat_at), end=at(facts.end_at)))
    elif facts.still_falling:
        found.append(translate("curve.falling"))
    if facts.gap is not None:
        found.append(
            translate(
                "curve.gap" if facts.gap > 0 else "curve.gap_negative", gap=loss(abs(facts.gap))
            )
        )
    if facts.validation_first is not None:
        rise = facts.validation_last - facts.validation_best
        key = (
            "curve.overfit"
            if facts.overfit
            else "curve.not_overfit"
            if rise > 0
            else "curve.lowest_last"
        )
        found.append(translate(key, rise=loss(rise), at=at(facts.best_at)))
        if facts.validation_last > facts.validation_first:
            found.append(
                translate(
                    "curve.worse_than_start",
                    first=loss(facts.validation_first),
                    last=loss(facts.validation_last),
                )
            )
    if facts.train_first is not None:
        steps = ", ".join(str(s) for s in facts.spikes[:8])
        found.append(
            translate(
                "curve.spikes", n=number(len(facts.spikes), "count", source), steps=code(steps)
            )
            if facts.spikes
            else translate("curve.no_spikes")
        )
    if facts.largest_gradient is not None:
        found.append(
            translate("curve.gradient", norm=number(facts.largest_gradient, "number", source))
        )
    return found or [translate("curve.none")]
