"""LoRA inside the base model's products. X' is a transpose, [X, Y] joins columns, [X ; Y] rows.

    [x, x A'] [W, s B]' = x W' + s (x A') B'

The low-rank products of LoRA cost little arithmetic and much memory traffic: the second one writes
a matrix as large as the layer's output, which another kernel reads again to add it. Lengthening the
base product's inner dimension by the rank (padded to a multiple of 64) gives the same sum inside
one kernel. For the output's gradient g, the gradient of the input is such a product, too:
[g, s g B] [W ; A]. So one matrix serves both passes:

    [ W  sB ]     W: the weights of all layers that read the same input, stacked (q, k, v; gate, up)
    [ A  0  ]     A: their LoRA factors, stacked, r rows each;  B: block-diagonal, r columns each

The frozen weights become views of this matrix, so they are stored once. A and B stay parameters of
peft's modules, and the matrix holds copies: they are small, and each forward pass of training
refreshes them. Only compiled training uses the matrix, because there the kernel that computes x
writes it directly into [x, x A']. DoRA uses the same products. It scales output n by its
magnitude over the norm of row n of W + s B A; the norms are computed from the same matrix.
`lightweight_adapters.py` computes the same without fusing. Tests compare the two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

import torch
from torch import nn

from tarazu.chat.fast.fused_lora_ops import FusedLoRAMatmul, register_lowerings
from tarazu.chat.fast.fused_mlp import fuse_mlps
from tarazu.chat.fast.lightweight_adapters import LightweightDoRA, LightweightLoRA, row_norms

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("o_proj",), ("down_proj",))
# The inner dimension grows by a multiple of this: other sizes cost more than fusing saves.
RANK_ALIGNMENT = 64
# Maximum padded rank of a group. Above it, the products with B's zeros cost more than fusing saves.
MAX_FUSED_RANK = 256
# Maximum bytes of the matrices of one stack. While a stack is built, its weights are in memory
# twice: as the model's tensors and in the stack.
MAX_STACK_BYTES = 2**30

Layers = list[LightweightLoRA]  # layers that read the same input


def fuse_lora_layers(model: nn.Module) -> int:
    """Fuse the LoRA layers of `model` that have the names in `GROUPS`, then its MLPs.

    Only LoRA and DoRA on a frozen nn.Linear, without dropout, are fused. Call this after the model
    is on its device: moving it later would separate the weights from the matrices.

    Args:
        model: a model with lightweight adapters; it is changed in place.

    Returns:
        The number of fused groups.
    """
    same_shape: dict[Hashable, list[Layers]] = defaultdict(list)
    for parent in model.modules():
        for names in GROUPS:
            layers = _fusible_layers(parent, names)
            if layers and _padded_rank(layers) <= MAX_FUSED_RANK:
                same_shape[_signature(layers)].append(layers)
    stacks = [
        _LayerStack(chunk) for groups in same_shape.values() for chunk in _memory_chunks(groups)
    ]
    if stacks:
        register_lowerings()
        fuse_mlps(model)
        model.get_decoder().register_forward_pre_hook(lambda *_: _refresh(stacks))
    return sum(len(groups) for groups in same_shape.values())


def has_fused_lora(model: nn.Module) -> bool:
    """Whether `fuse_lora_layers` found a group in this model."""
    return any(getattr(module, "group", None) is not None for module in model.modules())


def _fusible_layers(parent: nn.Module, names: tuple[str, ...]) -> Layers | None:
    """The children of `parent` with these names; None if they cannot be fused with each other."""
    layers = [getattr(parent, name, None) for name in names]
    kinds = {type(layer) for layer in layers}
    if len(kinds) > 1 or not kinds <= {LightweightLoRA, LightweightDoRA}:
        return None
    for layer in layers:
        dropout = layer.lora_dropout[layer.active_adapters[0]]
        frozen_linear = (
            type(layer.base_layer) is nn.Linear and not layer.base_layer.weight.requires_grad
        )
        if layer.group is not None or not isinstance(dropout, nn.Identity) or not frozen_linear:
            return None
    weights = [layer.base_layer.weight for layer in layers]
    same_input = len({(w.shape[1], w.dtype, w.device) for w in weights}) == 1
    return layers if same_input else None


def _padded_rank(layers: Layers) -> int:
    """The sum of the layers' ranks, rounded up to a multiple of `RANK_ALIGNMENT`."""
    rank = sum(layer.r[layer.active_adapters[0]] for layer in layers)
    return -(-rank // RANK_ALIGNMENT) * RANK_ALIGNMENT


def _signature(layers: Layers) -> Hashable:
    """A key, equal for groups that can share a stack: same shapes, ranks, scales and device."""
    weight = layers[0].base_layer.weight
    parts: list[Hashable] = [weight.dtype, weight.device]
    for layer in layers:
        name = layer.active_adapters[0]
        shape = layer.base_layer.weight.shape
        parts.append((type(layer), name, *shape, layer.r[name], layer.scaling[name]))
    return tuple(parts)


def _matrix_shape(layers: Layers) -> tuple[int, int]:
    """(outputs + spare, inputs + spare), where the spare rows and columns hold the factors."""
    spare = _padded_rank(layers)
    weights = [layer.base_layer.weight for layer in layers]
    return sum(weight.shape[0] for weight in weights) + spare, weights[0].shape[1] + spare


def _memory_chunks(groups: list[Layers]) -> list[list[Layers]]:
    """Groups of one signature in chunks whose matrices take at most `MAX_STACK_BYTES`."""
    rows, columns = _matrix_shape(groups[0])
    itemsize = groups[0][0].base_layer.weight.itemsize
    size = max(1, MAX_STACK_BYTES // (rows * columns * itemsize))
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def _refresh(stacks: list[_LayerStack]) -> None:
    """Copy the factors into the matrices. The copies run on the device, so a CUDA graph has them.

    Without gradients nothing is copied, because each layer then computes its output unfused (see
    `LightweightLoRA.falls_back`).
    """
    if torch.is_grad_enabled():
        for stack in stacks:
            stack.refresh()


class _LayerStack:
    """The same group in many decoder blocks, for example q, k and v of blocks 0 to 25.

    The matrices of all blocks are one tensor, so that a few copies refresh all of them.

    Args:
        groups: for each decoder block, the linear layers of its group.
    """

    def __init__(self, groups: list[Layers]):
        first = groups[0]
        weight = first[0].base_layer.weight
        self.out_sizes = [layer.base_layer.weight.shape[0] for layer in first]
        self.width = weight.shape[1]
        self.matrices = weight.new_zeros(len(groups), *_matrix_shape(first))
        self.scales = [layer.scaling[layer.active_adapters[0]] for layer in first]
        self.groups = [
            FusedGroup(layers, matrix, self.scales)
            for layers, matrix in zip(groups, self.matrices, strict=True)
        ]

    def refresh(self) -> None:
        """Copy A and s B of every group into its matrix.

        The copies are written through `.data`, so that autograd sees no in-place change of the
        matrices. Gradients reach A and B because they are arguments of `FusedLoRAMatmul`.
        """
        matrices, total = self.matrices.data, sum(self.out_sizes)
        # The layer's outputs begin at `row`, and its rank at `column`, both counted within the
        # group. B goes to the right of W, in the layer's rows; A goes below W, in its rank's rows.
        row, column = 0, 0
        for index, (size, scale) in enumerate(zip(self.out_sizes, self.scales, strict=True)):
            layers = [group.layers[index] for group in self.groups]
            factors = [layer.factors(layer.active_adapters[0]) for layer in layers]
            lora_a = torch.stack([a.data for a, _ in factors])
            lora_b = torch.stack([b.data for _, b in factors])
            end = column + lora_a.shape[1]
            place_b = matrices[:, row : row + size, self.width + column : self.width + end]
            torch.mul(lora_b, scale, out=place_b)
            matrices[:, total + column : total + end, : self.width].copy_(lora_a)
            row, column = row + size, end


class FusedGroup:
    """Layers that read the same input and share one matrix.

    Args:
        layers: the layers; their base weights become views of the matrix.
        matrix: (outputs + spare, inputs + spare), zeros.
        scales: of the layers' adapters.
    """

    def __init__(self, layers: Layers, matrix: torch.Tensor, scales: list[float]):
        weight = layers[0].base_layer.weight
        self.layers, self.width, self.matrix = layers, weight.shape[1], matrix
        self.out_sizes = [layer.base_layer.weight.shape[0] for layer in layers]
        # A tensor, because Python numbers would become constants of the compiled code, and other
        # scales would compile it again.
        self.scales = torch.tensor(scales, device=weight.device)
        # Without this, a model of another LoRA rank in this process would make the sizes symbolic,
        # which torch 2.11 cannot compile.
        torch._dynamo.mark_static(self.matrix)
        self.input: torch.Tensor | None = None
        self.outputs: list[torch.Tensor | None] = []
        row = 0
        for index, (layer, size) in enumerate(zip(layers, self.out_sizes, strict=True)):
            view = self.matrix[row : row + size, : self.width]
            view.copy_(layer.base_layer.weight)
            layer.base_layer.weight.data = view
            layer.group, layer.group_index = self, index
            row += size
        is_dora = type(layers[0]) is LightweightDoRA
        weights = self.matrix[:row, : self.width]
        # Squared norms of W's rows, which never change; only DoRA needs them.
        self.squares = (weights.to(torch.float32) ** 2).sum(1) if is_dora else None

    def output(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The output (..., out) of layer `index`, before its bias, for an input x (..., in).

        The first layer that is called with an input computes the outputs of all layers. Each output
        is handed out once.
        """
        if self.input is not x or self.outputs[index] is None:
            self.input = x
            self.outputs = list(FusedLoRAMatmul.apply(x, self.matrix, self.scales, *self.factors()))
            if self.squares is not None:
                magnitudes = [
                    layer.lora_magnitude_vector[layer.active_adapters[0]].weight
                    for layer in self.layers
                ]
                self.outputs = [
                    out * (magnitude / norms).to(x.dtype)
                    for out, magnitude, norms in zip(
                        self.outputs, magnitudes, self.row_norms(), strict=True
                    )
                ]
        out, self.outputs[index] = self.outputs[index], None
        # The model calls the layers in order. After the last one the group keeps no tensor alive.
        if index == len(self.layers) - 1:
            self.input, self.outputs = None, []
        return out

    def factors(self) -> list[torch.Tensor]:
        """A (r, in) and B (out, r) of the first layer, of the second, and so on."""
        pairs = [layer.factors(layer.active_adapters[0]) for layer in self.layers]
        return [factor for pair in pairs for factor in pair]

    def row_norms(self) -> tuple[torch.Tensor, ...]:
        """Norms of the rows of W + s B A, (out,) for each layer.

        One call computes them for all layers, because B is block-diagonal: its zeros keep the
        factors of one layer out of the rows of another.
        """
        total, width = sum(self.out_sizes), self.width
        norms = row_norms(
            self.matrix[:total, :width],
            self.matrix[total:, :width],
            self.matrix[:total, width:],
            self.squares,
        )
        return norms.split(self.out_sizes)
