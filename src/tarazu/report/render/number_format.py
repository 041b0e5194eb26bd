"""How figures are written: as few digits as say something, with a unit that a person reads."""

from __future__ import annotations

from typing import Any

from tarazu.report.analysis.study_view import as_number


def format_number(value: Any, format: str) -> tuple[str | None, str]:
    """(text, unit key) of a figure; text is None where there is no figure."""
    value = as_number(value)
    if value is None:
        return None, ""
    if format == "bytes":
        return _scaled(value, 1000, ("byte", "kilobyte", "megabyte", "gigabyte", "terabyte"))
    if format == "flops":
        return _scaled(value, 1000, ("flop", "kiloflop", "megaflop", "gigaflop", "teraflop"))
    if format == "seconds":
        return _duration(value)
    if format == "percent":
        return f"{value * 100:.1f}".replace("-", "\u2212"), "percent"
    if format in (
        "signed_percent",
        "percentage_points",
    ):  # of a share of another thing; between two shares
        return _signed(
            f"{value * 100:+.1f}"
        ), "percent" if format == "signed_percent" else "percentage_point"
    if format == "share":
        share = value * 100
        return (f"{share:.1f}" if abs(share) >= 1 else f"{share:.3g}"), "percent"
    writer = WRITERS.get(format, _significant)
    return _signed(writer(value)), ""


def _signed(text: str) -> str:
    """With a true minus; a change that rounds to nothing has no sign."""
    if text[:1] in "+-" and not text.strip("+-0."):
        text = text[1:]
    return text.replace("-", "\u2212")


def _significant(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.4g}"


WRITERS = {
    "count": lambda v: f"{v:,.0f}",
    "points": lambda v: f"{v:.1f}",
    "loss": lambda v: f"{v:.3f}",
    "signed": lambda v: f"{v:+.3f}",
    "signed_points": lambda v: f"{v:+.1f}",
    "two": lambda v: f"{v:.2f}",
    "rate": lambda v: f"{v:.3g}",
    "p": lambda v: "< 0.001" if v < 0.001 else f"{v:.3f}",
}


def _scaled(value: float, base: int, units: tuple[str, ...]) -> tuple[str, str]:
    index = 0
    while abs(value) >= base and index < len(units) - 1:
        value, index = value / base, index + 1
    return (f"{value:.0f}" if index == 0 or abs(value) >= 100 else f"{value:.3g}"), units[index]


def _duration(value: float) -> tuple[str, str]:
    if abs(value) < 120:
        return f"{value:.3g}" if value < 100 else f"{value:.0f}", "second"
    if abs(value) < 7200:
        return f"{value / 60:.1f}", "minute"
    return f"{value / 3600:.1f}", "hour"
