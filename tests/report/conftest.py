"""Reports that several tests read, built once."""

from __future__ import annotations

import pytest
from caption_folders import captions_folder
from folders import chat_folder

from tarazu.report.build import build


class Reports(dict):
    """Reports of invented studies: name -> (folder, report.html), built when first asked for.

    Names are "chat", "captions", "hostile chat" and "hostile captions".
    """

    def __init__(self, folders):
        self.folders = folders

    def __missing__(self, name: str):
        folder, hostile = self.folders.mktemp(name), name.startswith("hostile")
        if "captions" in name:
            captions_folder(folder, hostile=hostile)
        else:
            chat_folder(folder, seeds=(0,) if hostile else (0, 1), hostile=hostile)
        self[name] = folder, build(folder)
        return self[name]


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    return Reports(tmp_path_factory)
