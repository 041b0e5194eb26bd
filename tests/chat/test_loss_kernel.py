"""The loss's GPU kernel against the plain path, for vocabularies that fill no block, with and without a cap."""

from __future__ import annotations

import pytest
import torch

from tarazu.chat import loss

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's kernel")


@GPU
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("words", [40, 4096, 128256, 256000])
@pytest.mark.parametrize("softcap", [None, 0.0, 30.0])  # 0: none, as everywhere else
def test_losses_and_slopes_are_the_plain_paths(words, softcap, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(70, words, device="cuda") * 8).to(dtype)
    labels = torch.randint(0, words, (70,), device="cuda")
    labels[:2] = torch.tensor([0, words - 1])
    wanted, slope = loss.loss_and_slope(logits.double().float(), labels, softcap, True)
    fast = loss._fast(logits, softcap)
    assert fast is loss._kernel().loss_and_slope
    found, mine = fast(logits, labels, softcap, True)
    assert mine.data_ptr() == logits.data_ptr()  # in place
    torch.testing.assert_close(found, wanted, atol=2e-2 if softcap else 1e-4, rtol=1e-4)
    assert (mine.float() - slope).norm() < 5e-3 * slope.norm()


@GPU
def test_what_the_kernel_is_not_for_is_compiled():
    assert loss._fast(torch.ones(3, 8, device="cuda"), None) is loss._compiled()
    assert loss._fast(torch.ones(3, 8, device="cuda", dtype=torch.bfloat16), 200.0) is loss._compiled()


def test_a_cpu_takes_the_plain_path():
    assert loss._fast(torch.ones(3, 8, dtype=torch.bfloat16), None) is loss.loss_and_slope
