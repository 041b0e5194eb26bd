"""A step of the compiler: large products by QuACK's kernels, where they are installed and take less of the GPU's power.

A layer's products run at the power that an H100 may take, not at its highest clock: under a load of a second torch's library
reaches 660 to 700 TFLOP/s where it reaches 787 for a moment. QuACK (Dao-AILab, which FlashAttention 4 requires) multiplies with two
groups of warps in turn, one writing its tile while the other works on its own, and gets 3 to 7% more from the same power; the numbers
are the same, for each is summed in the same order. Works on the graph of a compiled layer, whatever the method; without QuACK, and for sizes
that its tiles do not suit, the products are torch's.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch._inductor.custom_graph_pass import get_hash_for_files
from torch.fx import Graph, Node

from tarazu.chat.thin import ThinProducts

HOPPER = (9, 0)  # the tiles below are for it
TILE = (128, 192)  # of the result; two neighbours share what they read
NARROWEST = 1024
LONGEST = 9000  # of the inner side: with 16,448 torch's library is faster
FULLEST = 0.96  # of the tiles that the processors can work on at a time, at least so many must be there
HALVES = (torch.bfloat16, torch.float16)


def why_not() -> str:
    """What stands in the way of these kernels, "" if nothing does."""
    if not torch.cuda.is_available() or torch.version.cuda is None or torch.cuda.get_device_capability() != HOPPER:
        return "QuACK's products are for an NVIDIA GPU of the Hopper kind"
    return "" if find_spec("quack") else "QuACK is not installed (pip install tarazu[flash])"


class LargeProducts(ThinProducts):
    """After the step of `thin.py`: hands products over whose frozen or learned side is large. `given` counts them."""

    def __init__(self):
        super().__init__()
        self.given = 0

    def __call__(self, graph: Graph) -> None:
        super().__call__(graph)
        for node in list(graph.nodes):
            if node.target is torch.ops.aten.mm.default and _may_suit(node):
                with graph.inserting_before(node):
                    other = graph.call_function(torch.ops.tarazu.product.default, node.args)
                other.meta = dict(node.meta)
                node.replace_all_uses_with(other)
                graph.erase_node(node)
                self.given += 1

    def uuid(self) -> Any:
        return super().uuid(), get_hash_for_files((__file__,))


def _may_suit(node: Node) -> bool:
    """As far as it is known before it runs: rows one after the other, times a large matrix."""
    left, right = (side.meta["val"] for side in node.args)
    inner, outer = right.shape
    known = all(isinstance(side, int) and side >= NARROWEST for side in (inner, outer)) and inner <= LONGEST
    return known and left.dtype in HALVES and _is_aligned(left) and (_is_aligned(right) or _is_aligned(right.T))


def _is_aligned(matrix: torch.Tensor) -> bool:
    """Rows of numbers side by side, each beginning at 16 bytes."""
    step, one = matrix.stride()
    return one == 1 and isinstance(step, int) and step % 8 == 0


@torch.library.custom_op("tarazu::product", mutates_args=())
def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(T, inner) times (inner, outer), which may lie either way round."""
    if not _fills(left.device, len(left), right.shape[1]):
        return left @ right
    made = left.new_empty(len(left), right.shape[1])
    _kernel()(left, right.T, made, None, None, *TILE, 2, 1, pingpong=True)
    return made


@_product.register_fake
def _(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


def _fills(device: torch.device, rows: int, columns: int) -> bool:
    """Whether the last round of tiles keeps most processors busy too."""
    if device.type != "cuda":
        return False
    tiles, most = -(-rows // TILE[0]) * -(-columns // TILE[1]), _processors(device)
    return rows * columns >= FULLEST * -(-tiles // most) * most * TILE[0] * TILE[1]


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _kernel() -> Any:
    from quack.gemm import gemm

    return gemm
