"""Charts in the page: labels, rounded positions, both kinds of digits, placement of names."""

from __future__ import annotations

from tarazu.report.render.figures import inline
from tarazu.report.render.label_placement import place_labels

SVG = (
    '<svg width="10" height="5"><g transform="translate(1.2345,0.5)">'
    '<text fill="#333333">6.3885</text><text>0.0001</text><text>lora 2</text></g></svg>'
)


def test_positions_are_rounded_and_labels_are_not():
    english = inline(SVG, "curves-en", "x")
    assert ">6.3885</text>" in english and ">0.0001</text>" in english
    assert "translate(1.2,0.5)" in english


def test_persian_chart_has_numbers_in_both_digits():
    persian = inline(SVG, "curves-fa", "x")
    assert '<tspan class="ld">6.3885</tspan><tspan class="fd">۶٫۳۸۸۵</tspan></text>' in persian
    assert ">lora 2</text>" in persian


def test_names_of_close_points_overlap_neither_names_nor_points():
    """Training times are often close together."""
    points = {
        "layers": (7.3, 2.77),
        "prefix_tuning": (7.5, 2.79),
        "rslora": (8.7, 2.586),
        "lora": (8.8, 2.595),
        "loha": (9.8, 2.62),
        "dora": (11.0, 2.596),
        "p_tuning": (8.1, 2.99),
    }
    rows = [{"name": name, "x": x, "y": y} for name, (x, y) in points.items()]
    placed = place_labels(rows, log=False)
    sides = {row["name"]: side for side, rows in placed.items() for row in rows}
    assert sides.keys() == points.keys() and sides["rslora"][0] != sides["lora"][0]
    assert sides["dora"][0] == "right" and sides["layers"][0] == "left"  # inwards at the edges
    assert sides["layers"][1] > 0 > sides["prefix_tuning"][1]


def test_numbers_in_persian_labels_have_both_digits():
    svg = "<svg><text>\u2067اعتبارسنجی، 10,000 توکن\u2069</text><text>lora 2</text></svg>"
    persian = inline(svg, "curves-fa", "x")
    assert '<tspan class="ld">10,000</tspan><tspan class="fd">۱۰٬۰۰۰</tspan> توکن' in persian
    assert ">lora 2</text>" in persian
    assert "10,000 توکن" in inline(svg, "curves-en", "x")
