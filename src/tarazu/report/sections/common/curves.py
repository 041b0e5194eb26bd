"""The training curves of a method: the figure, and sentences that say what the curves show."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tarazu.report.analysis.curves import CurveFacts, analyse, curve, downsample
from tarazu.report.analysis.study_view import MethodView
from tarazu.report.render import charts
from tarazu.report.render.bilingual import Bilingual, code, number, translate
from tarazu.report.render.figures import Figure
from tarazu.report.sections.common.base import EPOCHS, Context

FormatNumber = Callable[[float | None], Bilingual]
MAX_SPIKES = 8  # steps named in the sentence on spikes


def axis_of(context: Context) -> tuple[str, Bilingual, str]:
    """The x axis of the task's curves: field of events.jsonl, title and number format."""
    field = context.task.curve_axis
    return field, translate(f"axis.{field}"), "two" if field == EPOCHS else "count"


def loss_figure(context: Context, method: MethodView) -> Figure | None:
    """Training and validation loss of the first run, and the validation loss of the other seeds."""
    field, title, _ = axis_of(context)
    train, group_size = downsample(curve(method.first, "step", field))
    validation = curve(method.first, "validation", field)
    named = [
        (translate("curve.train"), train, 0, 0),
        (translate("curve.validation"), validation, 1, 1),
    ]
    for i, run in enumerate(run for run in method.runs if run is not method.first):
        name = translate("curve.validation_seed", seed=number(run.seed, "count"))
        named.append((name, curve(run, "validation", field), 2 + i, 2))
    series = [
        charts.Series(name, points.x, points.y, color, dash)
        for name, points, color, dash in named
        if points
    ]
    if not series:
        return None
    caption = translate("curve.caption", method=code(method.name))
    if group_size > 1:
        size = number(group_size, "count")
        caption = translate("curve.caption_downsampled", method=code(method.name), size=size)
    files = [run.file("events.jsonl") for run in method.runs]
    loss_title = translate("axis.loss")
    figure_name = f"curves-{method.name}"
    return line_figure(context, figure_name, caption, series, title, loss_title, files)


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
    """A figure of lines, with the data from which the page's script draws it as an interactive one.

    Args:
        name: the name of the figure's files.
        x, y: the titles of the axes.
        log: whether the x axis is logarithmic.
    """
    data = {
        "x": _in_both_languages(x),
        "y": _in_both_languages(y),
        "log": log,
        "series": [_series_data(s) for s in series],
    }
    make = partial(charts.lines, series, x, y, log=log)
    return context.figures.add(name, caption, make, sources, data)


def _series_data(series: charts.Series) -> dict:
    """One line as the page's script reads it."""
    return {
        "name": _in_both_languages(series.name),
        "x": series.x,
        "y": series.y,
        "color": charts.PALETTE[series.color % len(charts.PALETTE)],
        "dash": charts.DASHES[series.dash % len(charts.DASHES)],
    }


def _in_both_languages(text: Bilingual | str) -> dict[str, str]:
    return {language: charts.label_text(text, language) for language in ("fa", "en")}


def curve_sentences(context: Context, method: MethodView) -> list[Bilingual]:
    """What the curves of the first run show, from the decrease of the loss to its spikes."""
    field, _, position_format = axis_of(context)
    facts, source = analyse(method.first, field), method.first.file("events.jsonl")
    loss = partial(number, format="loss", source=source)
    position = partial(number, format=position_format, source=source)
    sentences: list[Bilingual] = []
    if facts.train_first is not None:
        ends = {"first": loss(facts.train_first), "last": loss(facts.train_last)}
        sentences.append(translate("curve.train_fell", **ends))
    if facts.validation_first is not None:
        best = {"best": loss(facts.validation_best), "at": position(facts.best_at)}
        ends = {"first": loss(facts.validation_first), "last": loss(facts.validation_last)}
        sentences.append(translate(f"curve.validation_{field}", **best, **ends))
    if facts.flat_at is not None:
        positions = {"at": position(facts.flat_at), "end": position(facts.end_at)}
        sentences.append(translate(f"curve.flat_{field}", **positions))
    elif facts.still_falling:
        sentences.append(translate("curve.falling"))
    if facts.gap is not None:
        key = "curve.gap" if facts.gap > 0 else "curve.gap_negative"
        sentences.append(translate(key, gap=loss(abs(facts.gap))))
    if facts.validation_first is not None:
        sentences += _overfitting_sentences(facts, loss, position)
    if facts.train_first is not None:
        sentences.append(_spike_sentence(facts, source))
    if facts.largest_gradient is not None:
        norm = number(facts.largest_gradient, "number", source)
        sentences.append(translate("curve.gradient", norm=norm))
    return sentences or [translate("curve.none")]


def _overfitting_sentences(
    facts: CurveFacts, loss: FormatNumber, position: FormatNumber
) -> list[Bilingual]:
    """Whether validation loss rose after its minimum, and whether it ended above its start."""
    rise = facts.validation_last - facts.validation_best
    if facts.overfit:
        key = "curve.overfit"
    else:
        key = "curve.not_overfit" if rise > 0 else "curve.lowest_last"
    sentences = [translate(key, rise=loss(rise), at=position(facts.best_at))]
    if facts.validation_last > facts.validation_first:
        ends = {"first": loss(facts.validation_first), "last": loss(facts.validation_last)}
        sentences.append(translate("curve.worse_than_start", **ends))
    return sentences


def _spike_sentence(facts: CurveFacts, source: str) -> Bilingual:
    """The steps at which training loss jumped."""
    if not facts.spikes:
        return translate("curve.no_spikes")
    steps = ", ".join(str(step) for step in facts.spikes[:MAX_SPIKES])
    count = number(len(facts.spikes), "count", source)
    return translate("curve.spikes", n=count, steps=code(steps))
