"""Tests run on two slow cores: one thread each keeps them repeatable and lets them share."""

import gc
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def freeze_garbage_collector():
    """Exempt existing objects from garbage collection, which runs and graph captures call often."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def undrawn(monkeypatch):
    """Reports are built without drawing, which is the slow part: charts become empty pictures."""
    from markupsafe import Markup

    from tarazu.report.render.bilingual import Bilingual
    from tarazu.report.render.figures import FigureWriter

    monkeypatch.setattr(
        FigureWriter,
        "drawn",
        lambda self, name, caption, make: Bilingual(Markup("<svg></svg>"), Markup("<svg></svg>")),
    )
