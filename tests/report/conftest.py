"""Reports that several tests look at, built once; and a way to build without drawing, which is the slow part."""

from __future__ import annotations

import pytest
from folders import captions_folder, chat_folder

from tarazu.report.build import build


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """{name: (folder, report.html)} of four made-up studies."""
    places = {name: tmp_path_factory.mktemp(name) for name in ("chat", "captions", "hostile chat", "hostile captions")}
    for name, place in places.items():
        make = captions_folder if "captions" in name else chat_folder
        make(place, hostile=name.startswith("hostile"), **({"seeds": (0, 1)} if name == "chat" else {}))
    return {name: (place, build(place)) for name, place in places.items()}


@pytest.fixture
def undrawn(monkeypatch):
    """Charts become empty pictures."""
    monkeypatch.setattr("tarazu.report.figures.draw", lambda chart: '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"></svg>')
    monkeypatch.setattr("vl_convert.svg_to_png", lambda svg, scale: b"")
