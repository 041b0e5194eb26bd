"""Fixtures of the engine's tests."""

from __future__ import annotations

import pytest
from engine.emulated_graphs import emulate_graphs


@pytest.fixture
def emulated_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs without a GPU."""
    emulate_graphs(monkeypatch)
