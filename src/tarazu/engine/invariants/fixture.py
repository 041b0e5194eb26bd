"""What an invariant is checked on, what a check returns, and the checks that a task adds.

A tolerance is measured, not guessed: the same rows run again with every embedding moved by one unit
in the last place, and `MARGIN` times the effect of that is allowed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tarazu.engine.precision import uses_bfloat16
from tarazu.engine.trainable import TrainableModel
from tarazu.recipe.schema import Recipe

MARGIN = 10  # times the measured rounding error


@dataclass(frozen=True)
class CheckResult:
    """The result of one invariant on one method.

    Args:
        name: the invariant, for example `packed = alone`.
        compared: what was compared.
        difference: the largest difference; None where there was nothing to compare.
        tolerance: the largest difference allowed; None where there was nothing to compare.
        reason: reason for the tolerance, or the reason that the check does not apply.
        verdict: `ok`, `failed` or `not applicable`.
    """

    name: str
    compared: str
    difference: float | None
    tolerance: float | None
    reason: str
    verdict: str

    def as_json(self) -> dict[str, Any]:
        """The fields as `verify.json` holds them."""
        return asdict(self)


def compare_to_tolerance(
    name: str, compared: str, difference: float, tolerance: float, reason: str
) -> CheckResult:
    """A result that is ok up to the tolerance. NaN is a failure."""
    verdict = "ok" if difference <= tolerance else "failed"
    return CheckResult(name, compared, difference, tolerance, reason, verdict)


def not_applicable(name: str, reason: str) -> CheckResult:
    """A result that says why the check does not apply to the method."""
    return CheckResult(name, "", None, None, reason, "not applicable")


def max_abs_difference(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> float:
    """The largest absolute difference of two sets of tensors.

    Args:
        a: tensors of any shape by row.
        b: tensors of the same shapes under the same keys.

    Returns:
        The largest difference; infinity if keys or shapes differ.
    """
    if a.keys() != b.keys() or any(a[key].shape != b[key].shape for key in a):
        return float("inf")
    return max((float((a[key] - b[key]).abs().max()) for key in a if a[key].numel()), default=0.0)


@dataclass
class CheckFixture:
    """What the checks of one method work on.

    Args:
        data: the task's prepared data.
        rows: indices of the few training rows that the checks use.
        recipe: the recipe.
        name: the method's name in the recipe.
        model: the method's model; its parameters are perturbed, so that no check passes on zeros.
        folder: a temporary folder.
        device: where the model lives.
        seed: seed of the runs.
    """

    data: Any
    rows: list[int]
    recipe: Recipe
    name: str
    model: TrainableModel
    folder: Path
    device: torch.device
    seed: int

    @property
    def unit(self) -> float:
        """Unit in the last place of matrix products, which compute in bfloat16, TF32 or float32."""
        if uses_bfloat16(self.recipe.budget, self.device):
            return torch.finfo(torch.bfloat16).eps
        reduced = self.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
        return 2.0**-10 if reduced else torch.finfo(torch.float32).eps

    def allowed(self, noise: float) -> tuple[float, str]:
        """A tolerance and its reason, from the measured effect of rounding.

        Args:
            noise: difference that one unit in the last place of the embeddings causes.
        """
        reason = (
            f"{MARGIN} times the effect of moving each embedding by one unit in the last place "
            f"({self.unit:.1e}), which is {noise:.2g} here"
        )
        return MARGIN * max(noise, self.unit), reason


class TaskInvariants:
    """The invariants that a task adds to the shared ones. Subclasses override what they check."""

    def lighter(self, recipe: Any) -> Any:
        """The recipe with less data or work, as the checks use it."""
        return recipe

    def skip_reason(self, recipe: Any, name: str) -> str | None:
        """Why the method cannot be checked before the study has run, or None."""
        return None

    def subset_rows(self, data: Any, count: int) -> list[int]:
        """Indices of `count` training rows that differ from each other."""
        return list(range(min(count, data.size("train"))))

    def deterministic(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """A context without random choices in the objective, besides dropout."""
        return contextlib.nullcontext()

    def checks(self, fixture: CheckFixture) -> Iterator[CheckResult]:
        """Checks of the method's forward pass and generation, in eval mode without gradients."""
        return iter(())
