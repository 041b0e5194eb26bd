"""How numbers are written: as few digits as are meaningful, with a unit that people read."""

from __future__ import annotations

from typing import Any

from tarazu.report.analysis.study_view import as_number

MINUS = "\u2212"
BYTE_UNITS = ("byte", "kilobyte", "megabyte", "gigabyte", "terabyte")
FLOP_UNITS = ("flop", "kiloflop", "megaflop", "gigaflop", "teraflop")


def format_number(value: Any, format: str) -> tuple[str | None, str]:
    """Write a number.

    Args:
        value: anything; only a finite number is written.
        format: "number" (4 significant digits), "count" (thousands), "points" (1 decimal), "two" (2
            decimals), "loss" (3 decimals), "rate" (3 significant digits), "p" (a p value), "signed"
            (3 decimals), "signed_points" (1 decimal), "percent" and "share" (of a fraction),
            "signed_percent" (a relative change), "percentage_points" (a difference of two
            fractions), "bytes", "flops" or "seconds".

    Returns:
        The text and the key of its unit (`unit.KEY` in the strings); (None, "") for no number.
    """
    number = as_number(value)
    if number is None:
        return None, ""
    if format in ("bytes", "flops"):
        return _with_prefix(number, BYTE_UNITS if format == "bytes" else FLOP_UNITS)
    if format == "seconds":
        return _duration(number)
    if format in PERCENTAGES:
        write, unit = PERCENTAGES[format]
        return write(number * 100), unit
    return _with_minus(WRITERS.get(format, _significant)(number)), ""


def _with_minus(text: str) -> str:
    """The text with a true minus sign; without any sign where the number was rounded to zero."""
    if text[:1] in "+-" and not text.strip("+-0."):
        text = text[1:]
    return text.replace("-", MINUS)


def _significant(value: float) -> str:
    """Four significant digits, thousands separators, and powers of ten for tiny numbers."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.4g}"


def _share(percentage: float) -> str:
    """One decimal; three significant digits below one percent."""
    return f"{percentage:.1f}" if abs(percentage) >= 1 else f"{percentage:.3g}"


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
# Formats of fractions: how the percentage is written, and its unit.
PERCENTAGES = {
    "percent": (lambda v: f"{v:.1f}".replace("-", MINUS), "percent"),
    "signed_percent": (lambda v: _with_minus(f"{v:+.1f}"), "percent"),
    "percentage_points": (lambda v: _with_minus(f"{v:+.1f}"), "percentage_point"),
    "share": (_share, "percent"),
}


def _with_prefix(value: float, units: tuple[str, ...]) -> tuple[str, str]:
    """Three significant digits with a decimal (SI) prefix."""
    index = 0
    while abs(value) >= 1000 and index < len(units) - 1:
        value, index = value / 1000, index + 1
    return (f"{value:.0f}" if index == 0 or abs(value) >= 100 else f"{value:.3g}"), units[index]


def _duration(seconds: float) -> tuple[str, str]:
    """Seconds up to two minutes, minutes up to two hours, then hours."""
    if abs(seconds) < 120:
        return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}", "second"
    if abs(seconds) < 7200:
        return f"{seconds / 60:.1f}", "minute"
    return f"{seconds / 3600:.1f}", "hour"
