"""Charts in the page: whole labels, places to a tenth of a pixel, Persian digits beside Latin ones in the Persian one."""

from __future__ import annotations

from tarazu.report.figures import inline

SVG = '<svg width="10" height="5"><g transform="translate(1.2345,0.5)"><text fill="#333333">6.3885</text><text>0.0001</text><text>lora 2</text></g></svg>'


def test_labels_keep_their_digits_and_places_do_not():
    english = inline(SVG, "curves-en", "x")
    assert ">6.3885</text>" in english and ">0.0001</text>" in english and "translate(1.2,0.5)" in english


def test_a_persian_chart_has_both_digits():
    persian = inline(SVG, "curves-fa", "x")
    assert '<tspan class="ld">6.3885</tspan><tspan class="fd">۶٫۳۸۸۵</tspan></text>' in persian
    assert ">lora 2</text>" in persian
