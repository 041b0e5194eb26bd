"""What must hold for every method of every task, tried on a few real rows: the checks that need no knowledge of the task.

Each check returns a `Finding`: what was compared, by how much it differed, and what would still be rounding. That is not a
guess: the same rows are run again with every word vector moved by one unit in the last place, and `MARGIN` times what
that changes is allowed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tarazu.engine import fingerprint, weights
from tarazu.engine.invariants.perturbations import (
    capture_gradients,
    embeddings_perturbed,
    put,
    without_dropout,
)
from tarazu.engine.ledger import Ledger
from tarazu.engine.subset_task import SimulatedCrash, SubsetTask, fit
from tarazu.engine.task import TrainableModel
from tarazu.engine.trainer import autocast, uses_bfloat16
from tarazu.recipe.schema import Budget, Recipe
from tarazu.storage.run_folder import RunDir

MARGIN = 10  # times the measured rounding
STEPS, PER_STEP = (
    4,
    2,
)  # of the short trainings; rows go one by one, so a cut can fall inside a step
LOST = 0.5  # of a gradient: a tensor's that is lost differs by 1, so no rounding may allow more
NEVER = (
    10**12
)  # tokens between validations, each with a checkpoint: large ones take longer to write than the training takes
CUT_AFTER = 5  # batches: in the middle of the third step


@dataclass(frozen=True)
class CheckResult:
    """One invariant on one method. `difference` and `tolerance` are None where there was nothing to compare."""

    name: str
    compared: str
    difference: float | None
    tolerance: float | None
    why: str
    verdict: str  # "ok", "failed" or "not applicable"

    def as_json(self) -> dict:
        return asdict(self)


def compare_to_tolerance(
    name: str, compared: str, difference: float, tolerance: float, why: str
) -> CheckResult:
    """ok up to the tolerance; a NaN is a failure."""
    return CheckResult(
        name, compared, difference, tolerance, why, "ok" if difference <= tolerance else "failed"
    )


def not_applicable(name: str, why: str) -> CheckResult:
    return CheckResult(name, "", None, None, why, "not applicable")


def max_abs_difference(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> float:
    """The largest absolute difference of two answers to the same question; infinite if they are not of one shape."""
    if a.keys() != b.keys() or any(a[key].shape != b[key].shape for key in a):
        return float("inf")
    return max((float((a[key] - b[key]).abs().max()) for key in a if a[key].numel()), default=0.0)


@dataclass
class CheckFixture:
    """What the checks work on: one method of a recipe, its few rows, and a folder that is thrown away."""

    few: SubsetTask
    recipe: Recipe
    name: str
    model: TrainableModel
    folder: Path
    device: torch.device
    seed: int

    def budget(self, **changes) -> Budget:
        """Four steps of two rows, one row at a time, with a validation and a checkpoint after each."""
        epochs = STEPS * PER_STEP / self.few.size("train")
        base = {
            "tokens": None,
            "epochs": epochs,
            "batch_rows": PER_STEP,
            "micro_batch_tokens": 1,
            "evaluate_every": 1,
            "watch": "loss",
        }
        base |= {"keep": "last", "patience": None, "warmup": 0.0, "schedule": "constant"}
        return self.recipe.budget.model_copy(update={**base, **changes})

    def fit(self, where: str, budget: Budget, cut_after: int | None = None) -> RunDir:
        few = SubsetTask(self.few.task, self.few.data, self.few.rows, cut_after)
        method = self.recipe.methods[self.name].model_copy(update={"batch_rows": None})
        recipe = self.recipe.model_copy(update={"budget": budget})
        return fit(
            few,
            self.model,
            recipe,
            method,
            RunDir(self.folder / where / f"seed-{self.seed}"),
            Ledger(self.device),
        )

    @torch.no_grad()
    def mean_loss(self, model: TrainableModel) -> float:
        """Over the few rows, one by one, in eval mode."""
        model.module.eval()
        with autocast(self.recipe.budget, self.device):
            return self.few.mean_loss(model, list(range(self.few.size("train"))), 1)

    @property
    def unit(self) -> float:
        """The last place of the numbers that products are made of: bfloat16, TF32 (where a GPU may use it), or float32."""
        if uses_bfloat16(self.recipe.budget, self.device):
            return torch.finfo(torch.bfloat16).eps
        reduced = self.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
        return 2.0**-10 if reduced else torch.finfo(torch.float32).eps

    def allowed(self, noise: float) -> tuple[float, str]:
        """A tolerance and its reason, from what rounding was measured to do."""
        why = f"{MARGIN} times what moving each word vector by its last place ({self.unit:.1e}) does here: {noise:.2g}"
        return MARGIN * max(noise, self.unit), why


def shared(
    bench: CheckFixture, rebuild: Callable[[], TrainableModel], steady: Callable
) -> Iterator[CheckResult]:
    """The checks of training itself, one by one, in an order that needs two builds of the model. `bench.model` is used up."""
    names = (
        "gradient = whatever the cut",
        "only the named tensors change",
        "resumed = uninterrupted",
        "saved = loaded",
    )
    if not bench.model.may_change:
        yield from (not_applicable(name, "nothing is trained") for name in names)
        return
    start = {name: p.detach().clone() for name, p in bench.model.trainable().items()}
    yield gradient_check(bench, names[0], steady)
    put(bench.model, start)
    before = fingerprint.fingerprint(bench.model.module)
    whole = bench.fit("whole", bench.budget(evaluate_every=NEVER))
    proof = fingerprint.compare(
        before, fingerprint.fingerprint(bench.model.module), bench.model.may_change
    )
    yield tensors_check(names[1], proof)
    kept = bench.mean_loss(bench.model)
    yield resume_check(bench, names[2], whole, start)
    bench.model = None  # two large models at once may not fit
    yield load_check(bench, names[3], whole, kept, rebuild())


def gradient_check(bench: CheckFixture, name: str, steady: Callable) -> CheckResult:
    """The gradient of one optimizer step, its rows one by one and all at once, without dropout."""
    rows = bench.few.size("train")
    found = []
    for limit, unit in ((1, 0.0), (bench.recipe.budget.micro_batch_tokens, 0.0), (1, bench.unit)):
        budget = bench.budget(
            epochs=1.0, batch_rows=rows, micro_batch_tokens=limit, clip=1e30, evaluate_every=NEVER
        )
        with (
            capture_gradients(bench.model) as caught,
            without_dropout(bench.model.module),
            steady(bench.model),
            embeddings_perturbed(bench.model.module, unit),
        ):
            bench.fit(f"gradient-{len(found)}", budget)
        found.append(dict(caught))
    difference, noise = (
        max_relative_difference(found[0], found[1]),
        max_relative_difference(found[0], found[2]),
    )
    size = math.sqrt(sum(float(g.double().square().sum()) for g in found[0].values()))
    text = f"{len(found[0])} tensors' gradients of {rows} rows, one row at a time and together; relative to each tensor (norm of all: {size:.3g})"
    tolerance, why = bench.allowed(noise)
    if tolerance > LOST:
        tolerance, why = LOST, f"{why}; but no more than {LOST}, or a lost gradient would pass"
    return compare_to_tolerance(name, text, difference, tolerance, why)


def max_relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of two sets of tensors; a tensor near nothing is measured beside the others."""
    if a.keys() != b.keys() or not a:
        return math.inf
    total = math.sqrt(sum(float(t.double().square().sum()) for t in a.values()) / len(a))
    return max(
        float((a[key].double() - b[key].double()).norm())
        / max(float(a[key].double().norm()), 1e-2 * total, 1e-30)
        for key in a
    )


def tensors_check(name: str, proof: dict) -> CheckResult:
    wrong = proof["wrongly_changed"] + proof["wrongly_unchanged"]
    text = f"sha256 of {proof['tensors']} tensors before and after {STEPS} steps; {proof['may_change']} may change"
    why = f"exact: {', '.join(wrong[:5])}" if wrong else "exact"
    return compare_to_tolerance(name, text, float(len(wrong)), 0.0, why)


def resume_check(
    bench: CheckFixture, name: str, whole: RunDir, start: dict[str, torch.Tensor]
) -> CheckResult:
    """A run that breaks off inside its third step and goes on from its checkpoint ends where an unbroken one ends."""
    put(bench.model, start)
    with contextlib.suppress(SimulatedCrash):
        bench.fit("cut", bench.budget(), CUT_AFTER)
    for parameter in bench.model.trainable().values():
        parameter.data.normal_()  # the checkpoint alone must know where it stood
        parameter.grad = None
    resumed = bench.fit("cut", bench.budget())
    path = apart_from(start, weights.read(whole), weights.read(resumed))
    tolerance, why = 0.0, "exact: the same arithmetic in the same order"
    if bench.device.type == "cuda":
        put(bench.model, start)
        again = apart_from(
            start,
            weights.read(whole),
            weights.read(bench.fit("again", bench.budget(evaluate_every=NEVER))),
        )
        tolerance, why = (
            max(MARGIN * again, 1e-3),
            f"{MARGIN} times what two unbroken runs differ by here ({again:.2g}), at least a thousandth",
        )
    text = f"{len(start)} trained tensors after {STEPS} steps, cut inside step {CUT_AFTER // PER_STEP + 1} and resumed; as a share of how far they moved"
    return compare_to_tolerance(name, text, path, tolerance, why)


def apart_from(
    start: dict[str, torch.Tensor], a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]
) -> float:
    """How far two ends are from each other, as a share of the way from the start; exactly 0 for equal bytes."""
    if all(torch.equal(a[key], b[key]) for key in a):
        return 0.0
    moved = math.sqrt(
        sum(float((a[key].double() - start[key].cpu().double()).square().sum()) for key in start)
    )
    return math.sqrt(
        sum(float((a[key].double() - b[key].double()).square().sum()) for key in start)
    ) / max(moved, 1e-30)


def load_check(
    bench: CheckFixture, name: str, whole: RunDir, kept: float, fresh: TrainableModel
) -> CheckResult:
    """A freshly built model that is given the saved weights computes the same losses."""
    before = bench.mean_loss(fresh)
    weights.put(fresh, weights.read(whole))
    difference = abs(bench.mean_loss(fresh) - kept)
    text = f"mean loss of {len(bench.few.rows)} rows in the trained model and in a new one with its weights (without them it differs by {abs(before - kept):.2g})"
    cuda = bench.device.type == "cuda"
    return compare_to_tolerance(
        name,
        text,
        difference,
        1e-5 if cuda else 0.0,
        "the GPU may add in another order"
        if cuda
        else "exact: the same arithmetic in the same order",
    )
