"""The report says the invariants in Persian too: it must know every text that they write."""

from __future__ import annotations

import re

from tarazu.report.render.bilingual import Bilingual, strings
from tarazu.report.render.known_messages import recognised


def unknown_to_the_report(checks: list[dict]) -> list[str]:
    """Names and texts of the checks that have no Persian, or lose a figure in it."""
    names = [check["name"] for check in checks if f"invariant.{check['name']}" not in strings()]
    texts = {check[key] for check in checks for key in ("compared", "reason") if check[key]}
    return names + [text for text in texts if not _told(text)]


def _told(text: str) -> bool:
    found = recognised(text)
    if not isinstance(found, Bilingual):
        return False
    figures = [
        set(re.findall(r"(?<!sha)\d+", side.replace("SHA-256", "")))
        for side in (text, found.plain("fa"))
    ]
    return found.plain("en") == text and figures[0] == figures[1]
