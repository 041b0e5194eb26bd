"""Large products are handed over to another library, and give the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tarazu.chat import products

QUACK = pytest.mark.skipif(bool(products.why_not()), reason="QuACK on a Hopper GPU")
PLACES, INNER, OUTER = 24, 1024, 1152


def work(x, weight, learned, odd, thin):
    """A frozen product and its way back, one whose sides are no multiple of 16 bytes, a thin one, and one over the places."""
    out = x @ weight.T
    return out, out @ weight, x @ odd, x @ thin, out.T @ x, (x.T.contiguous().T @ learned.T).sum()


def given(dtype=torch.bfloat16):
    torch.manual_seed(0)
    shapes = [(PLACES, INNER), (OUTER, INNER + 64), (OUTER, INNER), (INNER, OUTER + 1), (INNER, 64)]
    x, weight, *others = (torch.randn(shape).to(dtype) for shape in shapes)
    return [x, weight[:, :INNER], *others]


@pytest.mark.parametrize(("dtype", "wanted"), [(torch.bfloat16, 2), (torch.float16, 2), (torch.float32, 0)])
def test_only_large_aligned_products_in_sixteen_bits_are_handed_over(dtype, wanted):
    inputs, step = given(dtype), products.LargeProducts()
    traced = make_fx(work, tracing_mode="fake")(*inputs)
    before = traced(*inputs)
    step(traced.graph)
    traced.recompile()
    assert step.given == wanted == sum(node.target is torch.ops.tarazu.product.default for node in traced.graph.nodes)
    for mine, plain in zip(traced(*inputs), before, strict=True):
        torch.testing.assert_close(mine, plain)


def test_a_last_round_of_few_tiles_is_not_worth_it(monkeypatch):
    monkeypatch.setattr(products, "_processors", lambda device: 132)
    gpu = torch.device("cuda")
    assert products._fills(gpu, 8192, 3072) and products._fills(gpu, 8192, 8192)
    assert not products._fills(gpu, 8192, 5120) and not products._fills(gpu, 128, 3072)
    assert not products._fills(torch.device("cpu"), 8192, 8192)


def test_another_machine_is_told_what_it_lacks():
    assert torch.cuda.is_available() or "Hopper" in products.why_not()


@QUACK
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu_the_numbers_are_torchs(dtype):
    torch.manual_seed(0)
    left = torch.randn(8192, 3136, device="cuda").to(dtype)
    for right in (torch.randn(3136, 3136, device="cuda").to(dtype)[:, :3072], torch.randn(8192, 3200, device="cuda").to(dtype)[:, :3136].T):
        assert products._fills(left.device, len(left), right.shape[1])
        torch.testing.assert_close(torch.ops.tarazu.product(left, right), left @ right, atol=0.25, rtol=1e-2)
    few = left[:300]
    torch.testing.assert_close(torch.ops.tarazu.product(few, right), few @ right)
