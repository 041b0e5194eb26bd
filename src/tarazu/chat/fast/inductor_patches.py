"""Norms that read their rows once: the compiler keeps rows of up to 1,024 numbers at hand and reads longer ones twice.

A model's rows are 2,048 to 4,096 numbers, which a GPU's registers hold as well. Norms then take
a seventh less time (Llama-3.2-3B's shape on an H100).
"""

from __future__ import annotations

from functools import cache
from typing import Any

LONGEST = 4096


@cache
def extend_persistent_reductions() -> None:
    """Once, before something with norms is compiled for a GPU."""
    from torch._inductor.choices import InductorChoices
    from torch._inductor.runtime.hints import ReductionHint
    from torch._inductor.virtualized import V

    known = InductorChoices.should_use_persistent_reduction

    def fits(features: Any, cooperative_reduction: bool) -> bool:
        along_rows = (
            not cooperative_reduction and features.get_reduction_hint() == ReductionHint.INNER
        )
        return (
            along_rows and V.graph.sizevars.statically_known_leq(features.reduction_numel, LONGEST)
        ) or known(features, cooperative_reduction)

    InductorChoices.should_use_persistent_reduction = staticmethod(fits)
