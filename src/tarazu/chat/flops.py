"""FLOPs of a chat method, from the loaded model and from what autograd must go back through.

A linear layer costs 2 in out for each position in the forward pass; in the backward pass as much
again for the gradient of its input, if something before it is trained, and as much again for its
weight, if that is trained. Which of these a method needs is not guessed from its name: one small
forward pass shows which tensors require a gradient. Attention costs 4 heads head_dim for each pair
of a position and a visible key, and twice that backward. The head runs at supervised tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from tarazu.chat.fast.lightweight_adapters import LIGHTWEIGHT_ADAPTERS, LightweightDoRA
from tarazu.chat.model.batching import ChatBatch, TokenizedRow, make_batch
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.engine.flops import linear_flops

PASS_LENGTH = 5  # tokens of the small pass: fewer than any layer is wide


@dataclass
class FlopCount:
    """FLOPs of a forward pass, and of the backward pass where there is one.

    Args:
        per_position: for each position of a row, virtual or not.
        per_visible_key: for each layer, FLOPs for each pair of a position and a visible key, and
            the layer's window (None: every position sees all before it).
        per_supervised_token: for each token under the loss.
        per_pass: for each pass, however long: products of weights with weights (DoRA, LoHa).
        backward: whether the backward pass is counted.
    """

    per_position: float = 0.0
    per_visible_key: list[tuple[float, int | None]] = field(default_factory=list)
    per_supervised_token: float = 0.0
    per_pass: float = 0.0
    backward: bool = True

    def num_products(self, input_grad: bool, weight_grad: bool) -> int:
        """How often a product runs: forward, and backward for each gradient that is needed."""
        return 1 + (input_grad + weight_grad) * self.backward

    def total(
        self,
        lengths: np.ndarray,
        supervised: float,
        passes: float,
        prompt_length: int = 0,
        prefix_length: int = 0,
    ) -> float:
        """FLOPs of some rows.

        Args:
            lengths: (rows,) tokens of each row.
            supervised: tokens under the loss, of all rows.
            passes: forward passes that they take.
            prompt_length: soft-prompt tokens before each row.
            prefix_length: prefix positions before each row.
        """
        positions = lengths + prompt_length
        attention = sum(
            flops * visible_pairs(positions, prefix_length, window).sum()
            for flops, window in self.per_visible_key
        )
        return float(
            self.per_position * positions.sum()
            + attention
            + self.per_supervised_token * supervised
            + self.per_pass * passes
        )


def visible_pairs(positions: np.ndarray, prefix_length: int, window: int | None) -> np.ndarray:
    """Pairs of a query and a key that it sees, causal and within the window.

    Args:
        positions: (rows,) length of each row.
        prefix_length: keys before each row.
        window: keys this many positions back or more are hidden; None: no limit.

    Returns:
        (rows,) numbers of pairs.
    """

    def pairs_of_first(n: np.ndarray) -> np.ndarray:
        """Pairs whose query is among the first n positions: 1 + 2 + ... + w + w + w."""
        w = np.minimum(n, window) if window else n
        return w * (w + 1) / 2 + (n - w) * w

    before = np.full_like(positions, prefix_length)
    return pairs_of_first(positions + prefix_length) - pairs_of_first(before)


def count_flops(model: TrainableChatModel, backward: bool = True) -> FlopCount:
    """Count the FLOPs of one small forward pass in train mode, and of what goes back through it.

    Args:
        model: the model, on any device, "meta" too.
        backward: count the backward pass; False for the work of an evaluation.
    """
    count, base = FlopCount(backward=backward), model.base
    num_positions = PASS_LENGTH + model.prompt_length
    row = TokenizedRow(np.full(PASS_LENGTH, 1), np.zeros(PASS_LENGTH, bool))
    batch = make_batch([[row]], model.prompt_length, model.prefix_length)
    handles = _register_hooks(model, count, num_positions)
    was_training = model.module.training
    model.module.train()
    try:
        with torch.random.fork_rng(), torch.set_grad_enabled(backward):
            hidden = hidden_states(model, _to_device(batch, base.device))
    finally:
        for handle in handles:
            handle.remove()
        model.module.train(was_training)
    head = base.get_output_embeddings().weight
    flops = linear_flops(1, head.shape[1], head.shape[0])
    products = count.num_products(hidden.requires_grad, head.requires_grad)
    count.per_supervised_token = flops * products
    return count


def flops_per_token(
    count: FlopCount,
    model: TrainableChatModel,
    lengths: np.ndarray,
    supervised_fraction: float,
    tokens_per_pass: float,
) -> float:
    """FLOPs for each real token of such rows; the work of virtual tokens is included.

    Args:
        count: FLOPs of the model.
        model: the model, for its virtual tokens.
        lengths: (rows,) tokens of a sample of rows.
        supervised_fraction: fraction of the tokens under the loss.
        tokens_per_pass: real tokens in one forward pass, on average.
    """
    tokens = int(lengths.sum())
    total = count.total(
        lengths,
        supervised_fraction * tokens,
        tokens / tokens_per_pass,
        model.prompt_length,
        model.prefix_length,
    )
    return total / tokens


def _to_device(batch: ChatBatch, device: torch.device) -> ChatBatch:
    """`batch.to`, for the meta device, too, to which pinned memory cannot be copied."""
    if device.type != "meta":
        return batch.to(device)
    tensors = {
        f.name: getattr(batch, f.name).to(device)
        for f in fields(batch)
        if isinstance(getattr(batch, f.name), torch.Tensor)
    }
    return replace(batch, **tensors)


def _register_hooks(
    model: TrainableChatModel, count: FlopCount, num_positions: int
) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that add to `count` what each module computes in the small pass."""
    handles = []

    def before(module: nn.Module, add: Callable[..., None], *args: Any) -> None:
        """Call add(count, module, input, *args) before the module's forward pass."""
        handles.append(
            module.register_forward_pre_hook(lambda m, inputs: add(count, m, inputs[0], *args))
        )

    # A network that computes the soft prompt runs once in a pass, whatever the rows.
    for module in getattr(model.module, "prompt_encoder", nn.Module()).modules():
        if isinstance(module, nn.Linear):
            before(module, _add_prompt_network)
    head = model.base.get_output_embeddings()
    for module in model.base.modules():
        if isinstance(module, nn.Linear) and module is not head:
            before(module, _add_linear, num_positions)
        if isinstance(module, LIGHTWEIGHT_ADAPTERS):
            before(module, _add_lightweight_adapter)
        elif hasattr(module, "hada_w1_a"):
            before(module, _add_loha)
        if type(module).__name__ == "DoraLinearLayer":
            hook = module.register_forward_pre_hook(
                lambda _m, inputs, kwargs: _add_dora_base(count, inputs[0], kwargs),
                with_kwargs=True,
            )
            handles.append(hook)
        if hasattr(module, "layer_idx") and hasattr(module, "head_dim"):
            hook = module.register_forward_hook(
                lambda m, _inputs, out: _add_attention(count, model, m, out)
            )
            handles.append(hook)
    return handles


def _add_prompt_network(count: FlopCount, module: nn.Linear, x: torch.Tensor) -> None:
    rows = x.numel() // module.in_features
    flops = linear_flops(rows, module.in_features, module.out_features)
    count.per_pass += flops * count.num_products(x.requires_grad, module.weight.requires_grad)


def _add_linear(count: FlopCount, module: nn.Linear, x: torch.Tensor, num_positions: int) -> None:
    rows = x.numel() // module.in_features
    flops = linear_flops(1, module.in_features, module.out_features)
    if rows == num_positions:
        products = count.num_products(x.requires_grad, module.weight.requires_grad)
        count.per_position += flops * products
    else:
        # peft's DoRA sends an identity matrix through its adapter to get B A; it has no gradient.
        count.per_pass += flops * rows


def _add_lightweight_adapter(count: FlopCount, module: nn.Module, x: torch.Tensor) -> None:
    """Adapters of `lightweight_adapters.py`: two low-rank products; for DoRA the base layer and
    norms."""
    base = module.get_base_layer()
    in_size, out_size = base.in_features, base.out_features
    rank = module.factors(module.active_adapters[0])[0].shape[0]
    down, up = linear_flops(1, in_size, rank), linear_flops(1, rank, out_size)
    count.per_position += down * count.num_products(x.requires_grad, True)
    count.per_position += up * count.num_products(True, True)
    if isinstance(module, LightweightDoRA):
        base_flops = linear_flops(1, in_size, out_size)
        count.per_position += base_flops * count.num_products(x.requires_grad, False)
        count.per_pass += (
            linear_flops(out_size, in_size, rank)
            + linear_flops(rank, in_size, rank)
            + linear_flops(out_size, rank, rank)
        )


def _add_loha(count: FlopCount, module: nn.Module, x: torch.Tensor) -> None:
    """peft's LoHa computes the whole update, (B1 A1) * (B2 A2), and multiplies by it."""
    for w1_a in module.hada_w1_a.values():
        rank, base = w1_a.shape[1], module.get_base_layer()
        flops = linear_flops(1, base.in_features, base.out_features)
        count.per_position += flops * count.num_products(x.requires_grad, True)
        # Two products forward; in the backward pass these again and four more.
        count.per_pass += flops * rank * (8 if count.backward else 2)


def _add_dora_base(count: FlopCount, x: torch.Tensor, kwargs: dict[str, Any]) -> None:
    """peft's DoRA with dropout runs the base layer a second time, on the input after dropout."""
    if kwargs.get("base_result") is None:
        base = kwargs["base_layer"]
        flops = linear_flops(1, base.in_features, base.out_features)
        count.per_position += flops * count.num_products(x.requires_grad, False)


def _add_attention(
    count: FlopCount, model: TrainableChatModel, module: nn.Module, out: tuple | torch.Tensor
) -> None:
    config = model.base.config
    hidden = out[0] if isinstance(out, tuple) else out
    flops = 4 * config.num_attention_heads * module.head_dim
    types = getattr(config, "layer_types", None)
    if types:
        slides = types[module.layer_idx] == "sliding_attention"
    else:
        slides = bool(getattr(config, "use_sliding_window", True))
    window = getattr(config, "sliding_window", None) if slides else None
    count.per_visible_key.append((flops * (3 if hidden.requires_grad else 1), window))
