"""Fused products give the same results, and there are fewer of them."""

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx

from tarazu.chat.fast.matmul_fusion_pass import FuseSkinnyMatmuls

TOKENS, WIDTH, RANK = 96, 80, 4
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


def inputs_of_layer():
    torch.manual_seed(0)
    shapes = [(WIDTH, WIDTH), (RANK, WIDTH), (RANK, WIDTH)] * 3
    return [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in [(TOKENS, WIDTH), *shapes]
    ]


def products(graph) -> int:
    return sum(node.target is mm for node in graph.nodes)


def test_skinny_products_are_fused_and_give_the_same():
    inputs, fuse = inputs_of_layer(), FuseSkinnyMatmuls()
    traced = make_fx(adapted, tracing_mode="fake")(*inputs)
    before, expected = products(traced.graph), traced(*inputs)
    fuse(traced.graph)
    traced.recompile()
    assert products(traced.graph) == before - fuse.num_fused
    assert fuse.num_fused == 6  # two for each side: x A, D x, and the sum of D A
    for mine, wanted in zip(traced(*inputs), expected, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-10)


def test_number_of_tokens_may_be_symbolic():
    fuse = FuseSkinnyMatmuls()

    def fusing_compiler(module, _):
        fuse(module.graph)
        module.recompile()
        return make_boxed_func(module.forward)

    x, *weights = inputs_of_layer()
    torch._dynamo.mark_dynamic(x, 0)
    results = []
    for run in (outputs, torch.compile(outputs, backend=aot_autograd(fw_compiler=fusing_compiler))):
        run(x, *weights).backward()
        results.append([t.grad for t in (x, *weights)])
        for t in (x, *weights):
            t.grad = None
    assert fuse.num_fused == 6
    for wanted, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-10, rtol=1e-10)


def test_dependent_products_are_not_fused():
    def chain(x, a):
        return (x @ a).sum() * (x @ (a * (x @ a).sum()))

    inputs, fuse = (
        [torch.randn(TOKENS, WIDTH).double(), torch.randn(WIDTH, RANK).double()],
        FuseSkinnyMatmuls(),
    )
    traced = make_fx(chain, tracing_mode="fake")(*inputs)
    expected = traced(*inputs)
    fuse(traced.graph)
    traced.recompile()
    torch.testing.assert_close(traced(*inputs), expected)


def test_symbolic_number_in_a_sum_is_no_product():
    fuse = FuseSkinnyMatmuls()
    traced = make_fx(lambda x: x + x.shape[0] + x, tracing_mode="symbolic")(torch.ones(5, 3))
    fuse(traced.graph)
    assert fuse.num_fused == 0 and torch.equal(traced(torch.ones(4, 3)), torch.full((4, 3), 6.0))
