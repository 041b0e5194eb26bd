"""axe-core finds no violation in Chromium, in both languages and themes; names stay whole."""

from __future__ import annotations

import importlib.resources

import pytest
from report.test_browser import CHROMIUM, browser, opened, playwright  # noqa: F401

axe = pytest.importorskip(
    "axe_playwright_python", reason="axe-core is not installed (the extra `dev`)"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
WIDTHS = {"phone": 390, "desktop": 1200}
# Switches that work without a script must come before the page, outside its landmarks.
SWITCHES = {"region": {"#show-fa", "#show-en", "#theme", "#digits"}}


def violations(page, part: str = "html") -> list[str]:
    """The violations that axe-core finds in a part of the page."""
    results = page.evaluate(
        "async part => (await axe.run(part, {resultTypes: ['violations']})).violations", part
    )
    located = [(v["id"], v["impact"], [node["target"][-1] for node in v["nodes"]]) for v in results]
    return [
        f"{id} ({impact}): {targets[:5]}"
        for id, impact, targets in located
        if not set(targets) <= SWITCHES.get(id, set())
    ]


@pytest.fixture
def tested(browser, reports):  # noqa: F811
    """Open a report with axe-core loaded."""

    def open_report(name: str, **options):
        page, _ = opened(browser, reports[name], bypass_csp=True, **options)
        page.evaluate((importlib.resources.files(axe) / "axe.min.js").read_text(encoding="utf-8"))
        return page

    return open_report


# Only three combinations, because axe-core takes half a minute for a page.
@pytest.mark.parametrize(
    ("name", "scheme", "width", "language"),
    [
        ("chat", "light", "phone", "fa"),
        ("chat", "dark", "desktop", "en"),
        ("captions", "dark", "phone", "fa"),
    ],
)
def test_axe_finds_no_violation(tested, name, scheme, width, language):
    page = tested(name, viewport={"width": WIDTHS[width], "height": 900}, color_scheme=scheme)
    page.evaluate(f"document.getElementById('show-{language}').click()")
    assert violations(page) == []


def test_axe_detects_low_contrast(tested):
    page = tested("chat", viewport={"width": 1200, "height": 900}, color_scheme="light")
    page.evaluate("document.querySelector('#page .lead').style.color = '#ddd'")
    assert [
        line
        for line in violations(page, "#page .lead")
        if line.startswith("color-contrast (serious)")
    ]


BROKEN = """() => [...document.querySelectorAll('code')].flatMap(code => {
  const lines = node => new Set([...node.getClientRects()].map(box => Math.round(box.top))).size
  if (!code.offsetParent || !/^[a-z0-9]+(_[a-z0-9]+)+$/.test(code.textContent)) return []
  return [...code.childNodes].filter(node => node.nodeType === 3).flatMap(node => {
    const range = document.createRange()
    range.selectNodeContents(node)
    return lines(range) > 1 ? [code.textContent] : []
  })
})"""


@pytest.mark.parametrize("language", ["fa", "en"])
def test_names_break_only_after_underscores(tested, language):
    page = tested("chat", viewport={"width": 390, "height": 900})
    page.evaluate(f"document.getElementById('show-{language}').click()")
    assert page.evaluate(BROKEN) == []
    page.add_style_tag(
        content="code { display: inline-block; inline-size: 1.5em; overflow-wrap: anywhere; "
        "white-space: normal !important; }"
    )
    assert "prompt_tuning" in page.evaluate(BROKEN)  # the check detects a broken name
