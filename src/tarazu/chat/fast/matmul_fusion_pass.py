"""A step of the compiler: thin products that read the same wide matrix, or add into the same one,
become one product.

Low-rank adapters make many products of which one side is a few dozen wide. Their cost is reading
the other side, (tokens, width), so q, k and v, or gate and up, should read it once. Works on the
graph of a compiled layer (torch.fx), forward and backward, whatever the model's code looks like:

    x A1', x A2'      -> x [A1' A2']          thin on the right
    D1' x, D2' x      -> [D1' ; D2'] x        thin on the left
    D1 A1 + D2 A2     -> [D1 D2] [A1 ; A2]    thin inside
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.pattern_matcher import stable_topological_sort
from torch.fx import Graph, Node

aten = torch.ops.aten
THIN = 64  # no wider than this
WIDE = 4  # times as wide as thin the other sides must be


class FuseSkinnyMatmuls(CustomGraphPass):
    """See the module's text. `num_fused` counts the products that went into others."""

    def __init__(self):
        self.num_fused = 0

    def __call__(self, graph: Graph) -> None:
        before = self.num_fused
        for products, side in _groups(graph):
            self.num_fused += _side_by_side(graph, products, side)
        stable_topological_sort(graph)  # what is joined may now stand after what uses it
        for add in reversed(list(graph.nodes)):
            if _is_sum(add) and not (len(add.users) == 1 and _is_sum(next(iter(add.users)))):
                self.num_fused += _sum(graph, add)
        if self.num_fused > before:
            graph.eliminate_dead_code()
            graph.lint()

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))


def _groups(graph: Graph) -> list[tuple[list[Node], int]]:
    """Products with one operand in common, whose other operand (number `side`) is thin."""
    groups: dict[tuple[Node, int], list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.target is aten.mm.default:
            rows, columns = node.meta["val"].shape
            if _thin(columns, node.args[0]):
                groups[node.args[0], 1].append(node)
            elif _thin(rows, node.args[1]):
                groups[node.args[1], 0].append(node)
    return [(products, side) for (_, side), products in groups.items() if len(products) > 1]


def _side_by_side(graph: Graph, products: list[Node], side: int) -> int:
    """One product for several that share an operand, and its parts in their places; products that
    need each other stay."""
    products = [one for one in products if not _depends_on(one, set(products) - {one})]
    if len(products) < 2:
        return 0
    last = max((one.args[side] for one in products), key=list(graph.nodes).index)
    with graph.inserting_after(_later(graph, last, products[0].args[1 - side])):
        joined = _call(graph, aten.cat.default, [one.args[side] for one in products], side)
    with graph.inserting_after(joined):
        pair = (products[0].args[0], joined) if side else (joined, products[0].args[1])
        whole = _call(graph, aten.mm.default, *pair)
    at, after = 0, whole
    for one in products:
        size = one.meta["val"].shape[side]
        with graph.inserting_after(after):
            after = _call(graph, aten.slice.Tensor, whole, side, at, at + size)
        if side:  # columns of a matrix are slow to multiply with, and these are few numbers
            with graph.inserting_after(after):
                after = _call(graph, aten.clone.default, after)
                after.kwargs = {"memory_format": torch.contiguous_format}
        one.replace_all_uses_with(after)
        graph.erase_node(one)
        at += size
    return len(products) - 1


def _sum(graph: Graph, root: Node) -> int:
    """The thin products among the terms of a sum become one term."""
    terms = _terms(root)
    thin = [term for term in terms if _is_thin_inside(_product(term)) and len(term.users) == 1]
    if len(thin) < 2:
        return 0
    products = [_product(term) for term in thin]
    with graph.inserting_before(root):
        lefts = _call(graph, aten.cat.default, [one.args[0] for one in products], 1)
        rights = _call(graph, aten.cat.default, [one.args[1] for one in products], 0)
        total = _call(graph, aten.mm.default, lefts, rights)
        if thin[0] is not products[0]:
            total = _call(graph, thin[0].target, total, *thin[0].args[1:])
        for term in terms:
            if term not in thin:
                total = _call(graph, aten.add.Tensor, term, total)
    root.replace_all_uses_with(total)
    return len(products) - 1


def _terms(node: Node) -> list[Node]:
    """What a tree of sums adds up; a sum that others use as well is a term of its own."""
    return [
        leaf
        for part in node.args
        for leaf in (_terms(part) if _is_sum(part) and len(part.users) == 1 else [part])
    ]


def _is_sum(node: Any) -> bool:
    same = (
        isinstance(node, Node)
        and node.target is aten.add.Tensor
        and not node.kwargs
        and all(_is_tensor(part) for part in node.args)
    )
    return same and all(
        part.meta["val"].shape == node.meta["val"].shape
        and part.meta["val"].dtype == node.meta["val"].dtype
        for part in node.args
    )


def _is_tensor(part: Any) -> bool:
    """And no number, be it one that is only known when it runs."""
    return isinstance(part, Node) and isinstance(part.meta["val"], torch.Tensor)


def _product(term: Node) -> Node:
    """The product under a change of shape."""
    under = term.args[0] if term.target in (aten.view.default, aten.reshape.default) else term
    return under if isinstance(under, Node) and len(under.users) == 1 else term


def _is_thin_inside(node: Node) -> bool:
    return node.target is aten.mm.default and _thin(node.args[0].meta["val"].shape[1], node)


def _thin(size: Any, wide: Node) -> bool:
    """Whether a side is thin beside a matrix; sizes that are only known when it runs count as
    wide."""
    if not isinstance(size, int) or size > THIN:
        return False
    return all(not isinstance(side, int) or side >= WIDE * size for side in wide.meta["val"].shape)


def _depends_on(node: Node, others: set[Node]) -> bool:
    """Whether a node comes, however indirectly, from one of the others."""
    seen, open_ = set(), list(node.all_input_nodes)
    while open_:
        one = open_.pop()
        if one in others:
            return True
        if one not in seen:
            seen.add(one)
            open_ += one.all_input_nodes
    return False


def _later(graph: Graph, a: Node, b: Node) -> Node:
    order = list(graph.nodes)
    return max(a, b, key=order.index)


def _call(graph: Graph, target: Any, *args: Any) -> Node:
    """A new node, with the shape and type of what it will give."""
    node = graph.call_function(target, args)
    values = torch.fx.map_arg(args, lambda n: n.meta["val"])
    node.meta["val"] = target(*values)
    return node
