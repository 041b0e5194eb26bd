"""The page in Chromium: data is never executed, and it works with and without scripts."""

from __future__ import annotations

import re
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


def opened(browser, report, **options):
    """The page, and a list of its console messages, errors and outside requests."""
    page = browser.new_context(**options).new_page()
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on(
        "request",
        lambda request: (
            messages.append(request.url) if not request.url.startswith(("file:", "data:")) else None
        ),
    )
    page.goto(report[1].as_uri())
    return page, messages


@pytest.mark.parametrize("name", ["chat", "captions", "hostile chat", "hostile captions"])
@pytest.mark.parametrize("width", [390, 1200])
def test_page_has_no_errors_or_requests_and_fits_the_screen(browser, reports, name, width):
    page, messages = opened(browser, reports[name], viewport={"width": width, "height": 900})
    assert messages == [] and page.title().startswith(("tarazu report", "گزارش ترازو"))
    for language in ("fa", "en"):
        page.evaluate(f"document.getElementById('show-{language}').click()")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.documentElement.dir") == (
            "rtl" if language == "fa" else "ltr"
        )


def test_languages_and_figures_work_without_scripts(browser, reports):
    page, _ = opened(browser, reports["chat"], java_script_enabled=False)
    assert page.locator(".static svg:visible").count() >= 10
    heading = page.locator("#overview-title")
    assert "نتیجه" in heading.inner_text()
    page.locator("label[for=show-en]").click()
    assert "Overview" in heading.inner_text() and "نتیجه" not in heading.inner_text()


def test_table_sorts_by_a_column_in_both_directions(browser, reports):
    page, _ = opened(browser, reports["chat"])
    head = page.locator("#comparison table.sortable").first.locator("th button").nth(2)
    cells = (
        "[...document.querySelector('#comparison table.sortable').tBodies[0].rows]"
        ".map(r => Number(r.cells[2].dataset.sort))"
    )
    head.click()
    ascending = page.evaluate(cells)
    head.click()
    assert ascending == sorted(ascending) and page.evaluate(cells) == ascending[::-1]


def test_curve_shows_values_hides_lines_and_zooms(browser, reports):
    page, _ = opened(browser, reports["chat"])
    figure = page.locator("#figure-curves-lora")
    figure.scroll_into_view_if_needed()
    box = figure.locator(".live svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert any(digit in figure.locator(".tip").inner_text() for digit in "0123456789")
    lines = figure.locator(".live polyline").count()
    figure.locator(".legend button").first.click()
    assert figure.locator(".live polyline").count() == lines - 1
    before = figure.locator(".live text").all_inner_texts()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 90, steps=4)
    page.mouse.up()
    assert figure.locator(".live text").all_inner_texts() != before


def test_answers_filter_by_ability(browser, reports):
    page, _ = opened(browser, reports["chat"])
    page.locator(".filters button[data-filter=facts]").click()
    shown = page.locator(".samples > .sample:visible")
    assert shown.count() == 3


@pytest.mark.parametrize("scripts", [True, False])
def test_digit_switch_works_with_and_without_scripts(browser, reports, scripts):
    page, _ = opened(browser, reports["chat"], java_script_enabled=scripts)
    latin, persian = set("0123456789"), set("۰۱۲۳۴۵۶۷۸۹")
    numbers = page.locator("#comparison table .n:visible")
    chart = page.locator("#figure-verdict .static tspan.fd:visible")
    before = "".join(numbers.all_inner_texts())
    assert latin & set(before) and persian.isdisjoint(before) and chart.count() == 0
    page.locator("label[for=digits]").click()
    switched = "".join(numbers.all_inner_texts())
    assert latin.isdisjoint(switched) and persian & set(switched) and chart.count() > 3
    if scripts:
        assert persian & set(
            "".join(page.locator("#figure-curves-lora .live text").all_text_contents())
        )
    page.locator("label[for=show-en]").click()  # Persian digits belong to the Persian text
    assert "".join(numbers.all_inner_texts()) == before and chart.count() == 0


def test_search_curve_has_a_logarithmic_axis_and_values(browser, reports):
    page, _ = opened(browser, reports["chat"])
    figure = page.locator("#figure-search-lora")
    figure.scroll_into_view_if_needed()
    marks = figure.locator(".live text").all_text_contents()
    assert any(re.fullmatch(r"\de-\d", mark) for mark in marks), marks
    figure.locator(".live svg").focus()
    page.keyboard.press("ArrowRight")
    assert re.search(r"\de-\d\)", figure.locator(".tip").inner_text())
    page.locator("label[for=digits]").click()
    assert set("۰۱۲۳۴۵۶۷۸۹") & set(figure.locator(".legend").inner_text())


def test_tapped_number_shows_its_source_file(browser, reports):
    page, _ = opened(
        browser, reports["chat"], viewport={"width": 390, "height": 800}, has_touch=True
    )
    figure = page.locator("#recommendation .n[title]:visible").first
    figure.tap()
    link = page.locator("a.from")
    assert (
        link.is_visible()
        and link.inner_text() == figure.get_attribute("title")
        and link.get_attribute("href").startswith("./")
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#recommendation-title").tap()
    assert not link.is_visible()


def test_quality_table_fits_a_printed_page(browser, reports):
    """A row of five lines would make the table of many methods taller than a landscape page."""
    page, _ = opened(browser, reports["chat"])
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1010, "height": 700})  # A4 on its side, between margins
    table = page.locator("#comparison > h2 + .scroll table")
    row = table.locator("tbody tr").nth(1).bounding_box()
    assert row["height"] < 45 and table.bounding_box()["width"] <= 1010


def test_curve_zooms_by_keyboard(browser, reports):
    page, _ = opened(browser, reports["chat"])
    figure = page.locator("#figure-curves-lora")
    figure.locator(".live svg").focus()
    before = figure.locator(".live text").all_text_contents()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    assert figure.locator(".live text").all_text_contents() != before
    page.keyboard.press("Escape")
    assert figure.locator(".live text").all_text_contents() == before
    page.keyboard.press("ArrowRight")  # the redrawn chart has the focus
    assert figure.locator(".tip").is_visible()
    assert page.locator(".chart-hint:visible").count() == 1
