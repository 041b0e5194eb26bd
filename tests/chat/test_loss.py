"""The loss's fast paths, the GPU kernel and the CPU's in-place loop, equal the plain path."""

from __future__ import annotations

import pytest
import torch

from tarazu.chat.model import loss

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's kernel")


@GPU
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [40, 4096, 128256, 256000])
@pytest.mark.parametrize("softcap", [None, 0.0, 30.0])  # 0: none, as everywhere else
def test_kernel_equals_plain_path(vocab_size, softcap, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(70, vocab_size, device="cuda") * 8).to(dtype)
    labels = torch.randint(0, vocab_size, (70,), device="cuda")
    labels[:2] = torch.tensor([0, vocab_size - 1])
    wanted, grad = loss.cross_entropy_with_grad(logits.double().float(), labels, softcap, True)
    fast = loss._pick_cross_entropy(logits, softcap, True)
    assert fast is loss._kernel_module().cross_entropy_with_grad
    losses, mine = fast(logits, labels, softcap, True)
    assert mine.data_ptr() == logits.data_ptr()  # in place
    torch.testing.assert_close(losses, wanted, atol=2e-2 if softcap else 1e-4, rtol=1e-4)
    assert (mine.float() - grad).norm() < 5e-3 * grad.norm()


@GPU
def test_unsupported_logits_take_the_compiled_path():
    assert loss._pick_cross_entropy(torch.ones(3, 8, device="cuda"), None, True) is loss._compiled()
    assert (
        loss._pick_cross_entropy(torch.ones(3, 8, device="cuda", dtype=torch.bfloat16), 200.0, True)
        is loss._compiled()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 0.0, 30.0])
@pytest.mark.parametrize("need_grad", [True, False])
def test_cpu_computes_in_place(softcap, dtype, need_grad, monkeypatch):
    monkeypatch.setattr(loss, "CACHE_BYTES", 3 * 4 * 500)  # three rows at a time, and one is left
    torch.manual_seed(0)
    logits, labels = (torch.randn(7, 500) * 30).to(dtype), torch.randint(0, 500, (7,))
    wanted, grad = loss.cross_entropy_with_grad(
        logits.float().double().float(), labels, softcap, need_grad
    )
    fast = loss._pick_cross_entropy(logits, softcap, need_grad)
    assert fast is loss.cross_entropy_in_place
    losses, mine = fast(logits, labels, softcap, need_grad)
    torch.testing.assert_close(losses, wanted, atol=1e-5, rtol=1e-5)
    assert (mine is None) == (grad is None)
    if need_grad:
        assert mine.data_ptr() == logits.data_ptr() and mine.dtype == dtype
        torch.testing.assert_close(
            mine.float(), grad, atol=1e-6 if dtype is torch.float32 else 1e-2, rtol=1e-5
        )
