"""Reports that several tests look at, built once."""

from __future__ import annotations

import pytest
from caption_folders import captions_folder
from folders import chat_folder

from tarazu.report.build import build


class Reports(dict):
    """{name: (folder, report.html)} of made-up studies ("chat", "captions", "hostile ..."), each made when it is first asked for."""

    def __init__(self, folders):
        self.folders = folders

    def __missing__(self, name: str):
        place = self.folders.mktemp(name)
        make = captions_folder if "captions" in name else chat_folder
        make(
            place,
            hostile=name.startswith("hostile"),
            **({"seeds": (0, 1)} if name == "chat" else {}),
        )
        self[name] = place, build(place)
        return self[name]


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    return Reports(tmp_path_factory)
