"""Reports that several tests look at, built once; and a way to build without drawing, which is the slow part."""

from __future__ import annotations

import pytest
from caption_folders import captions_folder
from folders import chat_folder
from markupsafe import Markup

from tarazu.report.build import build
from tarazu.report.figures import Gallery
from tarazu.report.text import Both


class Reports(dict):
    """{name: (folder, report.html)} of made-up studies ("chat", "captions", "hostile ..."), each made when it is first asked for."""

    def __init__(self, folders):
        self.folders = folders

    def __missing__(self, name: str):
        place = self.folders.mktemp(name)
        make = captions_folder if "captions" in name else chat_folder
        make(place, hostile=name.startswith("hostile"), **({"seeds": (0, 1)} if name == "chat" else {}))
        self[name] = place, build(place)
        return self[name]


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    return Reports(tmp_path_factory)


@pytest.fixture
def undrawn(monkeypatch):
    """Charts become empty pictures."""
    monkeypatch.setattr(
        Gallery, "drawn", lambda self, name, caption, make: Both(Markup("<svg></svg>"), Markup("<svg></svg>"))
    )
