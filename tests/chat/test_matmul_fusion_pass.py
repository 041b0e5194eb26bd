"""Joined products give what the products gave, and there are fewer of them."""

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx

from tarazu.chat.fast.matmul_fusion_pass import FuseSkinnyMatmuls

PLACES, WIDTH, RANK = 96, 80, 4
mm = torch.ops.aten.mm.default


def outputs(x, *weights):
    """Three adapted products of one input, as in a layer's attention."""
    outs = []
    for i in range(0, len(weights), 3):
        base, down, up = weights[i : i + 3]
        outs.append(x @ base + (x @ down.T) @ up)
    return (outs[0].sin() * outs[1].cos() + outs[2]).sum()


def adapted(x, *weights):
    """Their gradients."""
    return torch.autograd.grad(
        outputs(x, *weights), [x, *(w for i, w in enumerate(weights) if i % 3)]
    )


def given():
    torch.manual_seed(0)
    shapes = [(WIDTH, WIDTH), (RANK, WIDTH), (RANK, WIDTH)] * 3
    return [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in [(PLACES, WIDTH), *shapes]
    ]


def products(graph) -> int:
    return sum(node.target is mm for node in graph.nodes)


def test_thin_products_are_joined_and_give_the_same():
    inputs, step = given(), FuseSkinnyMatmuls()
    traced = make_fx(adapted, tracing_mode="fake")(*inputs)
    before, expected = products(traced.graph), traced(*inputs)
    step(traced.graph)
    traced.recompile()
    assert products(traced.graph) == before - step.num_fused
    assert step.num_fused == 6  # two for each side: x A, D x, and the sum of D A
    for mine, wanted in zip(traced(*inputs), expected, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-10)


def test_the_number_of_places_may_be_unknown_when_it_is_compiled():
    step = FuseSkinnyMatmuls()

    def joined(module, _):
        step(module.graph)
        module.recompile()
        return make_boxed_func(module.forward)

    x, *weights = given()
    torch._dynamo.mark_dynamic(x, 0)
    found = []
    for run in (outputs, torch.compile(outputs, backend=aot_autograd(fw_compiler=joined))):
        run(x, *weights).backward()
        found.append([t.grad for t in (x, *weights)])
        for t in (x, *weights):
            t.grad = None
    assert step.num_fused == 6
    for wanted, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-10)


def test_products_that_need_each_other_stay():
    def chain(x, a):
        return (x @ a).sum() * (x @ (a * (x @ a).sum()))

    inputs, step = (
        [torch.randn(PLACES, WIDTH).double(), torch.randn(WIDTH, RANK).double()],
        FuseSkinnyMatmuls(),
    )
    traced = make_fx(chain, tracing_mode="fake")(*inputs)
    expected = traced(*inputs)
    step(traced.graph)
    traced.recompile()
    torch.testing.assert_close(traced(*inputs), expected)


def test_a_number_that_is_only_known_when_it_runs_is_no_product():
    step = FuseSkinnyMatmuls()
    traced = make_fx(lambda x: x + x.shape[0] + x, tracing_mode="symbolic")(torch.ones(5, 3))
    step(traced.graph)
    assert step.num_fused == 0 and torch.equal(traced(torch.ones(4, 3)), torch.full((4, 3), 6.0))
