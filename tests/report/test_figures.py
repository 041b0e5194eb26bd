"""Charts in the page: whole labels, places to a tenth of a pixel, Persian digits beside Latin ones in the Persian one."""

from __future__ import annotations

from tarazu.report.render.figures import inline
from tarazu.report.render.label_placement import place_labels

SVG = '<svg width="10" height="5"><g transform="translate(1.2345,0.5)"><text fill="#333333">6.3885</text><text>0.0001</text><text>lora 2</text></g></svg>'


def test_labels_keep_their_digits_and_places_do_not():
    english = inline(SVG, "curves-en", "x")
    assert (
        ">6.3885</text>" in english
        and ">0.0001</text>" in english
        and "translate(1.2,0.5)" in english
    )


def test_a_persian_chart_has_both_digits():
    persian = inline(SVG, "curves-fa", "x")
    assert '<tspan class="ld">6.3885</tspan><tspan class="fd">۶٫۳۸۸۵</tspan></text>' in persian
    assert ">lora 2</text>" in persian


def test_names_of_near_points_cover_neither_each_other_nor_a_point():
    """Two pairs that stand close together, as training times do; names are about 6 pixels a letter."""
    near = {
        "layers": (7.3, 2.77),
        "prefix_tuning": (7.5, 2.79),
        "rslora": (8.7, 2.586),
        "lora": (8.8, 2.595),
        "loha": (9.8, 2.62),
        "dora": (11.0, 2.596),
        "p_tuning": (8.1, 2.99),
    }
    found = {
        row["name"]: key
        for key, rows in place_labels(
            [{"name": n, "x": x, "y": y} for n, (x, y) in near.items()], False
        ).items()
        for row in rows
    }
    assert found.keys() == near.keys() and found["rslora"][0] != found["lora"][0]
    assert found["dora"][0] == "right" and found["layers"][0] == "left"  # inwards at the edges
    assert found["layers"][1] > 0 > found["prefix_tuning"][1]


def test_figures_among_persian_words_have_both_digits():
    svg = "<svg><text>\u2067اعتبارسنجی، 10,000 توکن\u2069</text><text>lora 2</text></svg>"
    persian = inline(svg, "curves-fa", "x")
    assert (
        '<tspan class="ld">10,000</tspan><tspan class="fd">۱۰٬۰۰۰</tspan> توکن' in persian
        and ">lora 2</text>" in persian
    )
    assert "10,000 توکن" in inline(svg, "curves-en", "x")
