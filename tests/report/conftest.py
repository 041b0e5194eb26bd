"""Reports that several tests look at, built once; and a way to build without drawing, which is the slow part."""

from __future__ import annotations

import pytest
from caption_folders import captions_folder
from folders import chat_folder
from markupsafe import Markup

from tarazu.report.build import build
from tarazu.report.figures import Gallery
from tarazu.report.text import Both


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
    monkeypatch.setattr(
        Gallery, "drawn", lambda self, name, caption, make: Both(Markup("<svg></svg>"), Markup("<svg></svg>"))
    )
