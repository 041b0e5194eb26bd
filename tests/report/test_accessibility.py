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


def findings(page, part: str = "html") -> list[str]:
    """What axe-core finds in a part of the page as it is shown now."""
    found = page.evaluate(
        "async part => (await axe.run(part, {resultTypes: ['violations']})).violations", part
    )
    told = [
        (one["id"], one["impact"], [node["target"][-1] for node in one["nodes"]]) for one in found
    ]
    return [
        f"{id} ({impact}): {places[:5]}"
        for id, impact, places in told
        if not set(places) <= SWITCHES.get(id, set())
    ]


@pytest.fixture
def tested(browser, reports):  # noqa: F811
    """Opens a report with axe-core in it."""

    def open_one(name: str, **options):
        page, _ = opened(browser, reports[name], bypass_csp=True, **options)
        page.evaluate((importlib.resources.files(axe) / "axe.min.js").read_text(encoding="utf-8"))
        return page

    return open_one


WAYS = (
    ("light", "phone", "fa"),
    ("dark", "desktop", "en"),
    ("dark", "phone", "fa"),
)  # few, as axe takes half a minute for a page


@pytest.mark.parametrize(
    ("name", "way"), [("chat", WAYS[0]), ("chat", WAYS[1]), ("captions", WAYS[2])]
)
def test_axe_finds_nothing(tested, name, way):
    scheme, width, language = way
    page = tested(name, viewport={"width": WIDTHS[width], "height": 900}, color_scheme=scheme)
    page.evaluate(f"document.getElementById('show-{language}').click()")
    assert findings(page) == []


def test_axe_would_find_grey_on_grey(tested):
    page = tested("chat", viewport={"width": 1200, "height": 900}, color_scheme="light")
    page.evaluate("document.querySelector('#page .lead').style.color = '#ddd'")
    assert [
        line
        for line in findings(page, "#page .lead")
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
def test_a_name_is_broken_after_an_underscore_or_not_at_all(tested, language):
    page = tested("chat", viewport={"width": 390, "height": 900})
    page.evaluate(f"document.getElementById('show-{language}').click()")
    assert page.evaluate(BROKEN) == []
    page.add_style_tag(
        content="code { display: inline-block; inline-size: 1.5em; overflow-wrap: anywhere; "
        "white-space: normal !important; }"
    )
    assert "prompt_tuning" in page.evaluate(BROKEN)  # so it would be seen
