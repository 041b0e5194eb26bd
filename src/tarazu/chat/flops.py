"""Model FLOPs of a chat method, from the loaded model and from what autograd says it must go back through.

Each linear layer costs 2 in out per position forward, as much again for the gradient of its input if something below is
trained, and as much again for its weight if that is. Which of these a method needs is not guessed from its name: one small
forward pass shows which inputs require a gradient. Attention costs 4 heads size per position and visible key forward, and
twice that backward. The head runs at supervised tokens only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import nn

from tarazu.chat.fast import lightweight_adapters
from tarazu.chat.model.batching import ChatBatch, TokenizedRow, make_batch
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.engine.flops import linear_flops

LENGTH = 5  # tokens of the small pass: few, so that no layer of a model is so narrow


@dataclass
class FlopCount:
    """FLOPs of training.

    Args:
        per_position: for each place of a row, virtual or not.
        per_visible_key: for each layer, FLOPs per position and visible key, and its window (None: sees everything before it).
        per_supervised_token: for each token under the loss.
        per_pass: for each forward pass, however long: products of weights with weights (DoRA, LoHa).
    """

    per_position: float = 0.0
    per_visible_key: list[tuple[float, int | None]] = field(default_factory=list)
    per_supervised_token: float = 0.0
    per_pass: float = 0.0
    backward: bool = True

    def num_products(self, into: bool, weight: bool) -> int:
        """How often a product is computed: forward, and backward for its input and its weight where they need a gradient."""
        return 1 + (into + weight) * self.backward

    def total(
        self,
        lengths: np.ndarray,
        supervised: float,
        batches: float,
        virtual: int = 0,
        prefix: int = 0,
    ) -> float:
        """FLOPs of rows of these lengths, each behind `virtual` prompt places or `prefix` keys, in so many passes."""
        places = lengths + virtual
        attention = sum(
            each * visible_pairs(places, prefix, window).sum()
            for each, window in self.per_visible_key
        )
        return float(
            self.per_position * places.sum()
            + attention
            + self.per_supervised_token * supervised
            + self.per_pass * batches
        )


def visible_pairs(places: np.ndarray, prefix: int, window: int | None) -> np.ndarray:
    """For rows of `places` positions, how many pairs of a query and a key that it sees (causal, within the window)."""

    def upto(n):
        m = np.minimum(n, window) if window else n
        return m * (m + 1) / 2 + (n - m) * m

    return upto(places + prefix) - upto(np.full_like(places, prefix))


def count_flops(model: TrainableChatModel, backward: bool = True) -> FlopCount:
    """Counts one small forward pass, in train mode; works on the meta device too. Without `backward`: evaluation's work."""
    work, base = FlopCount(backward=backward), model.base
    prefix = model.prefix_length
    handles = _watch(model, work, LENGTH + model.prompt_length)
    training = model.module.training
    model.module.train()
    row = TokenizedRow(np.full(LENGTH, 1), np.zeros(LENGTH, bool))
    batch = _on(make_batch([[row]], model.prompt_length, prefix), base.device)
    try:
        with torch.random.fork_rng(), torch.set_grad_enabled(backward):
            hidden = hidden_states(model, batch)
    finally:
        for handle in handles:
            handle.remove()
        model.module.train(training)
    head = base.get_output_embeddings().weight
    forward = linear_flops(1, head.shape[1], head.shape[0])
    work.per_supervised_token = forward * work.num_products(
        hidden.requires_grad, head.requires_grad
    )
    return work


def flops_per_token(
    work: FlopCount,
    model: TrainableChatModel,
    lengths: np.ndarray,
    supervised_share: float,
    tokens_per_pass: float,
) -> float:
    """FLOPs per real token of rows like these, virtual tokens' work included.

    Args:
        lengths: tokens of a sample of rows.
        supervised_share: of the tokens.
        tokens_per_pass: real tokens in one forward pass, on average.
    """
    prefix = model.prefix_length
    tokens = int(lengths.sum())
    return (
        work.total(
            lengths,
            supervised_share * tokens,
            tokens / tokens_per_pass,
            model.prompt_length,
            prefix,
        )
        / tokens
    )


def _on(batch: ChatBatch, device: torch.device) -> ChatBatch:
    """`batch.to`, for the meta device too, which no pinned memory reaches."""
    if device.type != "meta":
        return batch.to(device)
    tensors = {
        f.name: value
        for f in fields(batch)
        if isinstance(value := getattr(batch, f.name), torch.Tensor)
    }
    return replace(
        batch, **{name: value.to(device) for name, value in tensors.items() if name != "counts"}
    )


def _watch(model: TrainableChatModel, work: FlopCount, places: int) -> list:
    """Hooks that add up what each module needs."""
    head = model.base.get_output_embeddings()
    encoders = getattr(model.module, "prompt_encoder", nn.Module())
    written = [
        m for m in encoders.modules() if isinstance(m, nn.Linear)
    ]  # a network that writes the prompt, once a pass
    handles = [
        m.register_forward_pre_hook(lambda m, args: _encoder(work, m, args[0])) for m in written
    ]
    for module in model.base.modules():
        if isinstance(module, nn.Linear) and module is not head:
            handles.append(
                module.register_forward_pre_hook(lambda m, args: _linear(work, m, args[0], places))
            )
        if isinstance(module, lightweight_adapters.LIGHTWEIGHT_ADAPTERS):
            handles.append(
                module.register_forward_pre_hook(lambda m, args: _lean(work, m, args[0]))
            )
        elif hasattr(module, "hada_w1_a"):
            handles.append(
                module.register_forward_pre_hook(lambda m, args: _hadamard(work, m, args[0]))
            )
        if type(module).__name__ == "DoraLinearLayer":
            handles.append(
                module.register_forward_pre_hook(
                    lambda m, args, kwargs: _again(work, args[0], kwargs), with_kwargs=True
                )
            )
        if hasattr(module, "layer_idx") and hasattr(module, "head_dim"):
            handles.append(
                module.register_forward_hook(lambda m, args, out: _attention(work, model, m, out))
            )
    return handles


def _encoder(work: FlopCount, module: nn.Linear, x: torch.Tensor) -> None:
    rows = x.numel() // module.in_features
    work.per_pass += linear_flops(
        rows, module.in_features, module.out_features
    ) * work.num_products(x.requires_grad, module.weight.requires_grad)


def _linear(work: FlopCount, module: nn.Linear, x: torch.Tensor, places: int) -> None:
    rows = x.numel() // module.in_features
    once = linear_flops(1, module.in_features, module.out_features)
    if rows == places:
        work.per_position += once * work.num_products(x.requires_grad, module.weight.requires_grad)
    else:  # DoRA sends an identity matrix through its adapter to learn the product; nothing goes back through that
        work.per_pass += once * rows


def _lean(work: FlopCount, module: nn.Module, x: torch.Tensor) -> None:
    """Adapters with the arithmetic of `adapters.py`: two thin products, and for DoRA the base's product and the norms."""
    base = module.get_base_layer()
    into, out = base.in_features, base.out_features
    rank = module.factors(module.active_adapters[0])[0].shape[0]
    work.per_position += linear_flops(1, into, rank) * work.num_products(x.requires_grad, True)
    work.per_position += linear_flops(1, rank, out) * work.num_products(True, True)
    if isinstance(module, lightweight_adapters.LightweightDoRA):
        work.per_position += linear_flops(1, into, out) * work.num_products(x.requires_grad, False)
        work.per_pass += (
            linear_flops(out, into, rank)
            + linear_flops(rank, into, rank)
            + linear_flops(out, rank, rank)
        )


def _hadamard(work: FlopCount, module: nn.Module, x: torch.Tensor) -> None:
    """LoHa writes out the whole update, (B1 A1) * (B2 A2), and multiplies by it: as dear as a second dense layer."""
    for first in module.hada_w1_a.values():
        rank, base = first.shape[1], module.get_base_layer()
        size = linear_flops(1, base.in_features, base.out_features)
        work.per_position += size * work.num_products(x.requires_grad, True)
        work.per_pass += (
            size * rank * (8 if work.backward else 2)
        )  # two products forward; those again and four more backward


def _again(work: FlopCount, x: torch.Tensor, kwargs: dict) -> None:
    """DoRA with dropout runs the base layer a second time, on what dropout left."""
    if kwargs.get("base_result") is None:
        base = kwargs["base_layer"]
        work.per_position += linear_flops(
            1, base.in_features, base.out_features
        ) * work.num_products(x.requires_grad, False)


def _attention(
    work: FlopCount, model: TrainableChatModel, module: nn.Module, out: tuple | torch.Tensor
) -> None:
    config, value = model.base.config, out[0] if isinstance(out, tuple) else out
    forward = 4 * config.num_attention_heads * module.head_dim
    types = getattr(config, "layer_types", None)
    slides = (
        types[module.layer_idx] == "sliding_attention"
        if types
        else bool(getattr(config, "use_sliding_window", True))
    )
    window = getattr(config, "sliding_window", None) if slides else None
    work.per_visible_key.append((forward * (3 if value.requires_grad else 1), window))
