"""Dropout of any module: find it, and switch it off for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

# Where layers keep a dropout probability themselves instead of in an `nn.Dropout`: a float, or a
# dict of floats by adapter name (peft). `nn.LSTM.dropout` acts between the layers of the LSTM.
DROPOUT_ATTRIBUTES = ("dropout", "attention_dropout", "module_dropout", "rank_dropout")


def uses_dropout(module: nn.Module) -> bool:
    """Whether any layer of the module drops something when it trains."""
    return any(
        any(value.values()) if isinstance(value, dict) else bool(value)
        for _, _, value in _probabilities(module)
    )


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Set every dropout probability of the module to 0 inside the context.

    Unlike `eval()`, this leaves the mode of all layers: cuDNN's LSTM has no backward pass in eval
    mode. A probability of 0 draws no random numbers. CUDA graphs that were captured before keep
    their dropout; see `cuda_graphs.recorder.invalidate_all`.
    """
    before = list(_probabilities(module))
    for layer, name, value in before:
        setattr(layer, name, dict.fromkeys(value, 0.0) if isinstance(value, dict) else 0.0)
    try:
        yield
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)


def _probabilities(module: nn.Module) -> Iterator[tuple[nn.Module, str, float | dict[str, float]]]:
    """(layer, attribute, value) of every dropout probability in the module."""
    for layer in module.modules():
        names = ("p",) if isinstance(layer, nn.Dropout) else DROPOUT_ATTRIBUTES
        for name in names:
            value = getattr(layer, name, None)
            if isinstance(value, (float, dict)):
                yield layer, name, value
