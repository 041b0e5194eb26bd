"""LoRA inside the large products: [x, x A'] [W, s B]' is x W' + s (x A') B', in one product a few columns wider.

The thin products of adapters cost little arithmetic and much memory traffic: each writes a matrix as large as the layer's
output, which the next kernel reads again to add it. A product whose inner side is 64 longer does the same sum in its
accumulator. The gradient of the input is a product of that kind too: [g, s g B] [W ; A]. So one matrix serves both,

    [ W  sB ]      W: the weights of all layers that read the same input, one below the other (q, k, v; gate, up)
    [ A  0  ]      A: their factors, one below the other, r rows each; B: block by block, r columns each

and the frozen weights are views of it: nothing is stored twice. A and B themselves stay where peft has them; they are
written into the matrix at the start of each pass. Only in compiled layers, whose compiler lets the kernel that makes x
write it straight into [x, x A']. DoRA's are the same products: what comes out is then scaled, and the norms of the rows
come from the matrix too. `adapters.py` is the plain path that tests compare with.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

from tarazu.chat.fast.fused_lora_ops import FusedLoRAMatmul, register_lowerings
from tarazu.chat.fast.fused_mlp import fuse_mlp
from tarazu.chat.fast.lightweight_adapters import LightweightDoRA, LightweightLoRA, row_norms

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("o_proj",), ("down_proj",))
RANK_ALIGNMENT = 64  # an inner side must stay a multiple of this, or the product slows down by more than is saved
MAX_FUSED_RANK = 256  # columns for adapters; with more, the zeros between the blocks would cost more than is saved
STACK = (
    2**30
)  # bytes of matrices that are filled together: the weights that go into them are in memory twice until all are there


def fuse_lora_layers(model: nn.Module) -> int:
    """Joins the LoRA layers of `model` that stand side by side under one of the names in `GROUPS`; returns how many matrices.

    Layers that are not LoRA or DoRA without dropout on a frozen matrix stay as they are. Call it when the model is where it
    will stay: a moved model has its weights apart again, and must not be trained so.
    """
    parts = [_together(module, names) for module in model.modules() for names in GROUPS]
    alike: dict[tuple, list[list[LightweightLoRA]]] = defaultdict(list)
    for modules in parts:
        if modules and _columns(modules) <= MAX_FUSED_RANK:
            alike[_kind(modules)].append(modules)
    stacks = [_LayerStack(some) for same in alike.values() for some in _pieces(same)]
    if stacks:
        register_lowerings()
        for module in list(model.modules()):
            fuse_mlp(module)
        model.get_decoder().register_forward_pre_hook(lambda *_: _fill(stacks))
    return sum(len(some) for some in alike.values())


def has_fused_lora(model: nn.Module) -> bool:
    """Whether `widen` was here and found something."""
    return any(isinstance(module, _Wide) for module in model.modules())


def _together(parent: nn.Module, names: tuple[str, ...]) -> list[LightweightLoRA] | None:
    """The children of these names, if all can be joined."""
    modules = [getattr(parent, name, None) for name in names]
    kinds = {type(module) for module in modules}
    if (
        len(kinds) > 1
        or not kinds <= JOINED.keys()
        or not all(
            isinstance(module.lora_dropout[module.active_adapters[0]], nn.Identity)
            for module in modules
        )
    ):
        return None
    weights = [module.base_layer.weight for module in modules]
    known = all(
        type(module.base_layer) is nn.Linear and not weight.requires_grad
        for module, weight in zip(modules, weights, strict=True)
    )
    return (
        modules if known and len({(w.shape[1], w.dtype, w.device) for w in weights}) == 1 else None
    )


def _columns(modules: list[LightweightLoRA]) -> int:
    """Room for their factors, in whole steps."""
    return (
        -(-sum(module.r[module.active_adapters[0]] for module in modules) // RANK_ALIGNMENT)
        * RANK_ALIGNMENT
    )


def _kind(modules: list[LightweightLoRA]) -> tuple:
    """What groups that are filled together have in common."""
    first, names = modules[0].base_layer.weight, [module.active_adapters[0] for module in modules]
    return (
        first.dtype,
        first.device,
        *(
            (type(m), name, *m.base_layer.weight.shape, m.r[name], m.scaling[name])
            for m, name in zip(modules, names, strict=True)
        ),
    )


def _sides(modules: list[LightweightLoRA]) -> tuple[int, int]:
    """Rows and columns of their matrix."""
    spare = _columns(modules)
    return sum(module.base_layer.weight.shape[0] for module in modules) + spare, modules[
        0
    ].base_layer.weight.shape[1] + spare


def _pieces(alike: list[list[LightweightLoRA]]) -> list[list[list[LightweightLoRA]]]:
    """Groups of one kind, so many together that their matrices are no larger than `STACK`."""
    rows, columns = _sides(alike[0])
    most = max(1, STACK // (rows * columns * alike[0][0].base_layer.weight.itemsize))
    return [alike[start : start + most] for start in range(0, len(alike), most)]


def _fill(stacks: list[_LayerStack]) -> None:
    """Copies on the device only, so that a recorded pass does them again."""
    if torch.is_grad_enabled():
        for stack in stacks:
            stack.fill()


class _LayerStack:
    """The same group of every layer: their matrices lie one behind the other, so that a few copies fill them all."""

    def __init__(self, alike: list[list[LightweightLoRA]]):
        first = alike[0][0].base_layer.weight
        self.sizes, self.width = (
            [module.base_layer.weight.shape[0] for module in alike[0]],
            first.shape[1],
        )
        self.matrices = first.new_zeros(len(alike), *_sides(alike[0]))
        self.scales = [module.scaling[module.active_adapters[0]] for module in alike[0]]
        self.groups = [
            _Group(modules, matrix, self.scales)
            for modules, matrix in zip(alike, self.matrices, strict=True)
        ]

    def fill(self) -> None:
        """A and s B into the matrices. Through `data`: autograd need not know, as they change only when the parameters do."""
        matrices, total, row, column = self.matrices.data, sum(self.sizes), 0, 0
        for place, size in enumerate(self.sizes):
            modules = [group.modules[place] for group in self.groups]
            name = modules[0].active_adapters[0]
            downs, ups = (
                torch.stack([factor.data for factor in same])
                for same in zip(*(module.factors(name) for module in modules), strict=True)
            )
            end = column + downs.shape[1]
            torch.mul(
                ups,
                self.scales[place],
                out=matrices[:, row : row + size, self.width + column : self.width + end],
            )
            matrices[:, total + column : total + end, : self.width].copy_(downs)
            row, column = row + size, end


class _Group:
    """Layers that read the same input, and their `matrix` (outputs + spare, inputs + spare), still of zeros."""

    def __init__(self, modules: list[LightweightLoRA], matrix: torch.Tensor, scales: list[float]):
        first = modules[0].base_layer.weight
        self.modules, self.width, self.matrix = modules, first.shape[1], matrix
        self.sizes = [module.base_layer.weight.shape[0] for module in modules]
        self.scales = torch.tensor(
            scales, device=first.device
        )  # not numbers: the compiler would make anew for others
        torch._dynamo.mark_static(
            self.matrix
        )  # another rank in this process would make its sides variables, which torch 2.11 cannot do here
        self.input, self.outputs, row = None, [], 0
        dora = type(modules[0]) is LightweightDoRA
        for place, (module, size) in enumerate(zip(modules, self.sizes, strict=True)):
            weight = module.base_layer.weight
            mine = self.matrix[row : row + size, : self.width]
            mine.copy_(weight)
            weight.data = mine
            module.group, module.place, module.__class__ = self, place, JOINED[type(module)]
            row += size
        self.squares = (
            (self.matrix[:row, : self.width].to(torch.float32) ** 2).sum(1) if dora else None
        )

    def output(self, place: int, x: torch.Tensor) -> torch.Tensor:
        """Of the layer number `place`. The first that is called with an input works for all of them."""
        if self.input is not x or self.outputs[place] is None:
            self.input, self.outputs = (
                x,
                list(FusedLoRAMatmul.apply(x, self.matrix, self.scales, *self.factors())),
            )
            if self.squares is not None:
                shares = [
                    module.lora_magnitude_vector[module.active_adapters[0]].weight / length
                    for module, length in zip(self.modules, self.lengths(), strict=True)
                ]
                self.outputs = [
                    turned * share.to(x.dtype)
                    for turned, share in zip(self.outputs, shares, strict=True)
                ]
        out, self.outputs[place] = self.outputs[place], None
        if place == len(self.modules) - 1:
            self.input, self.outputs = None, []
        return out

    def factors(self) -> list[torch.Tensor]:
        """A and B of the first layer, of the second, and so on."""
        return [
            factor
            for module in self.modules
            for factor in module.factors(module.active_adapters[0])
        ]

    def lengths(self) -> tuple[torch.Tensor, ...]:
        """(out,) of each layer: the norms of the rows of W + s B A. The zeros of the matrix keep the layers apart."""
        total, width = sum(self.sizes), self.width
        return row_norms(
            self.matrix[:total, :width],
            self.matrix[total:, :width],
            self.matrix[:total, width:],
            self.squares,
        ).split(self.sizes)


class _Wide:
    """An adapter whose product is part of its group's, in a compiled layer that learns."""

    def falls_back(self, x: torch.Tensor) -> bool:
        """Whether for this input it works as if it had no group."""
        plain = self.disable_adapters or self.merged or x.dtype != self.group.matrix.dtype
        return plain or not torch.is_grad_enabled() or not torch.compiler.is_compiling()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.falls_back(x):
            return super().forward(x)
        out = self.group.output(self.place, x)
        return out if self.base_layer.bias is None else out + self.base_layer.bias


class WideLoRA(_Wide, LightweightLoRA):
    """LoRA."""


class WideDoRA(_Wide, LightweightDoRA):
    """DoRA: `_Group` scales what comes out of the product."""


JOINED = {LightweightLoRA: WideLoRA, LightweightDoRA: WideDoRA}
