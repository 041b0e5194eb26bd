"""The report shows invariants in Persian too, so it must know every text that the checks write."""

from __future__ import annotations

import re

from tarazu.report.render.bilingual import Bilingual, strings
from tarazu.report.render.known_messages import recognised


def untranslated(checks: list[dict]) -> list[str]:
    """Names and texts of the checks without a translation, or whose translation loses a number."""
    names = [check["name"] for check in checks if f"invariant.{check['name']}" not in strings()]
    texts = {check[key] for check in checks for key in ("compared", "reason") if check[key]}
    return names + [text for text in texts if not _is_translated(text)]


def _is_translated(text: str) -> bool:
    translation = recognised(text)
    if not isinstance(translation, Bilingual):
        return False
    persian_numbers = _numbers(translation.plain("fa"))
    return translation.plain("en") == text and persian_numbers == _numbers(text)


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<!sha)\d+", text.replace("SHA-256", "")))
