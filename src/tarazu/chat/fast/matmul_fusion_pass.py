"""A pass of the compiler that fuses skinny matrix products with a common operand or a common sum.

Low-rank adapters compute many products with one side of a few dozen. Their cost is reading the
other operand, (tokens, width), so q, k and v, or gate and up, should read it once. The pass works
on the graph of a compiled layer (torch.fx), forward and backward, whatever the model's code looks
like:

    x A1', x A2'      -> x [A1' A2']          skinny on the right: split the columns afterwards
    D1' x, D2' x      -> [D1' ; D2'] x        skinny on the left: split the rows
    D1 A1 + D2 A2     -> [D1 D2] [A1 ; A2]    skinny inside: the product sums
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.pattern_matcher import stable_topological_sort
from torch.fx import Graph, Node

aten = torch.ops.aten
MAX_SKINNY = 64  # a skinny side has at most so many columns or rows
MIN_RATIO = 4  # the other sides are at least so many times as long


class FuseSkinnyMatmuls(CustomGraphPass):
    """The pass, as drawn at the top of this file.

    Attributes:
        num_fused: products that became part of another one so far.
    """

    def __init__(self):
        self.num_fused = 0

    def __call__(self, graph: Graph) -> None:
        before = self.num_fused
        # First products with a common operand.
        for products, side in _products_with_common_operand(graph):
            self.num_fused += _fuse_side_by_side(graph, products, side)
        stable_topological_sort(graph)  # a fused node may stand after a node that uses it
        # Then sums, each from its root, the last addition.
        for node in reversed(list(graph.nodes)):
            if _is_sum(node) and not (len(node.users) == 1 and _is_sum(next(iter(node.users)))):
                self.num_fused += _fuse_sum(graph, node)
        if self.num_fused > before:
            graph.eliminate_dead_code()
            graph.lint()

    def uuid(self) -> Any:
        """Part of the key of Inductor's cache: changes with this file."""
        return get_hash_for_files((__file__,))


def _products_with_common_operand(graph: Graph) -> list[tuple[list[Node], int]]:
    """Groups of products with one operand in common, whose other operand (`side`) is skinny."""
    groups: dict[tuple[Node, int], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.target is aten.mm.default:
            rows, columns = node.meta["val"].shape
            left, right = node.args
            if _is_skinny(columns, left):
                groups[left, 1].append(node)
            elif _is_skinny(rows, right):
                groups[right, 0].append(node)
    return [(products, side) for (_, side), products in groups.items() if len(products) > 1]


def _fuse_side_by_side(graph: Graph, products: list[Node], side: int) -> int:
    """Make one product of several and slices in their places; returns how many products that saves.

    Args:
        graph: changed in place.
        products: with a common operand.
        side: number of the skinny operand: 0 left, 1 right.
    """
    # A product that needs another one of the group cannot be computed together with it.
    products = [node for node in products if not _depends_on(node, set(products) - {node})]
    if len(products) < 2:
        return 0
    order = list(graph.nodes).index
    last = max((node.args[side] for node in products), key=order)
    with graph.inserting_after(max(last, products[0].args[1 - side], key=order)):
        joined = _call(graph, aten.cat.default, [node.args[side] for node in products], side)
    left, right = products[0].args
    operands = (left, joined) if side else (joined, right)
    with graph.inserting_after(joined):
        fused = _call(graph, aten.mm.default, *operands)
    start, previous = 0, fused
    for node in products:
        end = start + node.meta["val"].shape[side]
        with graph.inserting_after(previous):
            part = _call(graph, aten.slice.Tensor, fused, side, start, end)
        if side:
            # Products with columns of a larger matrix are slow; these are few numbers, so copy
            # them.
            with graph.inserting_after(part):
                part = _call(graph, aten.clone.default, part)
                part.kwargs = {"memory_format": torch.contiguous_format}
        node.replace_all_uses_with(part)
        graph.erase_node(node)
        start, previous = end, part
    return len(products) - 1


def _fuse_sum(graph: Graph, root: Node) -> int:
    """Make one product of the skinny products in a sum; returns how many products that saves."""
    terms = _terms(root)
    skinny = [t for t in terms if _is_skinny_inside(_product(t)) and len(t.users) == 1]
    if len(skinny) < 2:
        return 0
    products = [_product(term) for term in skinny]
    with graph.inserting_before(root):
        lefts = _call(graph, aten.cat.default, [node.args[0] for node in products], 1)
        rights = _call(graph, aten.cat.default, [node.args[1] for node in products], 0)
        total = _call(graph, aten.mm.default, lefts, rights)
        if skinny[0] is not products[0]:  # the change of shape that the terms had
            total = _call(graph, skinny[0].target, total, *skinny[0].args[1:])
        for term in terms:
            if term not in skinny:
                total = _call(graph, aten.add.Tensor, term, total)
    root.replace_all_uses_with(total)
    return len(products) - 1


def _terms(node: Node) -> list[Node]:
    """The terms of a tree of additions. A sum that is used elsewhere, too, is a term of its own."""
    terms = []
    for part in node.args:
        terms += _terms(part) if _is_sum(part) and len(part.users) == 1 else [part]
    return terms


def _is_sum(node: Any) -> bool:
    """Whether a node adds two tensors of its own shape and type, without a factor."""
    if not isinstance(node, Node) or node.target is not aten.add.Tensor or node.kwargs:
        return False
    value = node.meta["val"]
    return all(
        _is_tensor(part)
        and part.meta["val"].shape == value.shape
        and part.meta["val"].dtype == value.dtype
        for part in node.args
    )


def _is_tensor(part: Any) -> bool:
    """Whether a node is a tensor; it may also be a number, even one that is known at run time
    only."""
    return isinstance(part, Node) and isinstance(part.meta["val"], torch.Tensor)


def _product(term: Node) -> Node:
    """The node under a change of shape."""
    if term.target not in (aten.view.default, aten.reshape.default):
        return term
    inner = term.args[0]
    return inner if isinstance(inner, Node) and len(inner.users) == 1 else term


def _is_skinny_inside(node: Node) -> bool:
    """Whether a node is a product whose inner side is skinny."""
    return node.target is aten.mm.default and _is_skinny(node.args[0].meta["val"].shape[1], node)


def _is_skinny(size: Any, matrix: Node) -> bool:
    """Whether a side is short beside a matrix. Sizes that are known at run time only count as
    long."""
    if not isinstance(size, int) or size > MAX_SKINNY:
        return False
    shape = matrix.meta["val"].shape
    return all(not isinstance(side, int) or side >= MIN_RATIO * size for side in shape)


def _depends_on(node: Node, others: set[Node]) -> bool:
    """Whether one of the others is an input of a node, however indirectly."""
    visited, to_visit = set(), list(node.all_input_nodes)
    while to_visit:
        current = to_visit.pop()
        if current in others:
            return True
        if current not in visited:
            visited.add(current)
            to_visit += current.all_input_nodes
    return False


def _call(graph: Graph, target: Any, *args: Any) -> Node:
    """A new node with the shape and type of its result."""
    node = graph.call_function(target, args)
    values = torch.fx.map_arg(args, lambda n: n.meta["val"])
    node.meta["val"] = target(*values)
    return node
