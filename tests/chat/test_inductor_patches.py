"""Inductor keeps the rows of a model's norms in registers, and decides everything else itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import sympy
import torch
from chat.test_graphed_forward import GPU
from torch._inductor.choices import InductorChoices
from torch._inductor.runtime.hints import ReductionHint
from torch._inductor.sizevars import SizeVarAllocator
from torch._inductor.virtualized import V

from tarazu.chat.fast import inductor_patches


@pytest.mark.parametrize(
    ("numbers", "hint", "cooperative", "wanted"),
    [
        (640, ReductionHint.INNER, False, True),
        (3072, ReductionHint.INNER, False, True),
        (4097, ReductionHint.INNER, False, False),
        (3072, ReductionHint.OUTER, False, False),
        (3072, ReductionHint.INNER, True, False),
    ],
)
def test_only_reductions_along_rows_of_a_models_width_change(numbers, hint, cooperative, wanted):
    inductor_patches.extend_persistent_reductions()
    features = SimpleNamespace(
        reduction_numel=sympy.Integer(numbers), numel=8192, get_reduction_hint=lambda: hint
    )
    with V.set_graph_handler(SimpleNamespace(sizevars=SizeVarAllocator())):
        assert InductorChoices.should_use_persistent_reduction(features, cooperative) == wanted


@GPU
def test_norm_reads_its_rows_once_on_a_gpu():
    from torch._inductor.utils import run_and_get_code

    inductor_patches.extend_persistent_reductions()
    norm = torch.nn.RMSNorm(2304, device="cuda", dtype=torch.bfloat16)
    rows = torch.randn(256, 2304, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        out, code = run_and_get_code(torch.compile(norm), rows)
        torch.testing.assert_close(out, norm(rows))
    assert "triton_per_" in code[0] and "triton_red_" not in code[0]
