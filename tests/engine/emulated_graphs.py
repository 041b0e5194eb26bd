"""CUDA graphs without a GPU: a replay runs the captured function again, into the same tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tarazu.engine.cuda_graphs import recorder
from tarazu.engine.cuda_graphs.capture import GraphPool

Tensors = tuple[torch.Tensor, ...]


def by_running(work: Callable[[], Tensors], _pool: GraphPool) -> tuple[Callable[[], None], Tensors]:
    """Stand in for `capture`: return a replay, and the tensors that it fills."""
    outputs = tuple(x.detach().clone() for x in work())

    def replay() -> None:
        with torch.enable_grad():
            new_outputs = work()
        for output, new in zip(outputs, new_outputs, strict=True):
            output.copy_(new.detach())

    return replay, outputs


def emulate_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the recorder capture with `by_running`, also where there is a GPU."""
    monkeypatch.setattr(recorder, "warm_up", lambda work, pool: work())
    monkeypatch.setattr(recorder, "capture", by_running)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
