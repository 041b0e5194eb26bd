"""Joined products give what the products gave, and there are fewer of them."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tarazu.chat.thin import ThinProducts

PLACES, WIDTH, RANK = 96, 80, 4
mm = torch.ops.aten.mm.default


def adapted(x, *weights):
    """Three adapted products of one input, their gradients included, as in a layer's attention."""
    outs = []
    for i in range(0, len(weights), 3):
        base, down, up = weights[i : i + 3]
        outs.append(x @ base + (x @ down.T) @ up)
    loss = (outs[0].sin() * outs[1].cos() + outs[2]).sum()
    return torch.autograd.grad(loss, [x, *(w for i, w in enumerate(weights) if i % 3)])


def given():
    torch.manual_seed(0)
    shapes = [(WIDTH, WIDTH), (RANK, WIDTH), (RANK, WIDTH)] * 3
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [(PLACES, WIDTH), *shapes]]


def products(graph) -> int:
    return sum(node.target is mm for node in graph.nodes)


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_thin_products_are_joined_and_give_the_same(mode):
    inputs, step = given(), ThinProducts()
    traced = make_fx(adapted, tracing_mode=mode)(*inputs)
    before, expected = products(traced.graph), traced(*inputs)
    step(traced.graph)
    traced.recompile()
    assert products(traced.graph) == before - step.found
    assert step.found == 6  # two for each side: x A, D x, and the sum of D A
    for mine, wanted in zip(traced(*inputs), expected, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-10)


def test_products_that_need_each_other_stay():
    def chain(x, a):
        return (x @ a).sum() * (x @ (a * (x @ a).sum()))

    inputs, step = [torch.randn(PLACES, WIDTH).double(), torch.randn(WIDTH, RANK).double()], ThinProducts()
    traced = make_fx(chain, tracing_mode="fake")(*inputs)
    expected = traced(*inputs)
    step(traced.graph)
    traced.recompile()
    torch.testing.assert_close(traced(*inputs), expected)
