"""What must hold for every method of every task, tried on a few real rows: the checks that need no knowledge of the task.

Each check returns a `Finding`: what was compared, by how much it differed, and what would still be rounding. That is not a
guess: the same rows are run again with every word vector moved by one unit in the last place, and `MARGIN` times what
that changes is allowed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tarazu.engine import fingerprint, weights
from tarazu.engine.invariants.fixture import (
    MARGIN,
    CheckFixture,
    CheckResult,
    compare_to_tolerance,
    not_applicable,
)
from tarazu.engine.invariants.perturbations import (
    capture_gradients,
    embeddings_perturbed,
    without_dropout,
)
from tarazu.engine.ledger import Ledger
from tarazu.engine.precision import autocast
from tarazu.engine.subset_task import SimulatedCrash, SubsetTask, fit
from tarazu.engine.trainable import TrainableModel
from tarazu.recipe.schema import Budget
from tarazu.storage.run_folder import RunDir

STEPS, PER_STEP = (
    4,
    2,
)  # of the short trainings; rows go one by one, so a cut can fall inside a step
LOST = 0.5  # of a gradient: a tensor's that is lost differs by 1, so no rounding may allow more
NEVER = (
    10**12
)  # tokens between validations, each with a checkpoint: large ones take longer to write than the training takes
CUT_AFTER = 5  # batches: in the middle of the third step


@dataclass
class TrainingFixture(CheckFixture):
    """A fixture that can also train: the task, cut down to the fixture's rows."""

    subset: SubsetTask

    def budget(self, **changes: Any) -> Budget:
        """Four steps of two rows, one row at a time, with a validation and a checkpoint after each."""
        epochs = STEPS * PER_STEP / self.subset.size("train")
        base = {
            "tokens": None,
            "epochs": epochs,
            "batch_rows": PER_STEP,
            "micro_batch_tokens": 1,
            "evaluate_every": 1,
            "monitor": "loss",
        }
        base |= {"keep": "last", "patience": None, "warmup_ratio": 0.0, "schedule": "constant"}
        return self.recipe.budget.model_copy(update={**base, **changes})

    def fit(self, where: str, budget: Budget, cut_after: int | None = None) -> RunDir:
        few = SubsetTask(self.subset.task, self.subset.data, self.subset.rows, cut_after)
        method = self.recipe.methods[self.name].model_copy(update={"batch_rows": None})
        recipe = self.recipe.model_copy(update={"budget": budget})
        run = RunDir(self.folder / where / f"seed-{self.seed}")
        return fit(few, self.model, recipe, method, run, Ledger(self.device))

    @torch.no_grad()
    def mean_loss(self, model: TrainableModel) -> float:
        """Over the few rows, one by one, in eval mode."""
        model.module.eval()
        with autocast(self.recipe.budget, self.device):
            return self.subset.mean_loss(model, list(range(self.subset.size("train"))), 1)


def shared_checks(
    fixture: TrainingFixture, rebuild: Callable[[], TrainableModel], deterministic: Callable
) -> Iterator[CheckResult]:
    """The checks of training itself, one by one, in an order that needs two builds of the model. `fixture.model` is used up."""
    names = (
        "gradient independent of micro-batches",
        "only trainable tensors change",
        "resumed = uninterrupted",
        "saved = loaded",
    )
    if not fixture.model.trainable_names:
        yield from (not_applicable(name, "nothing is trained") for name in names)
        return
    start = {name: p.detach().clone() for name, p in fixture.model.trainable().items()}
    yield gradient_check(fixture, names[0], deterministic)
    weights.restore(fixture.model, start)
    before = fingerprint.fingerprint(fixture.model.module)
    whole = fixture.fit("whole", fixture.budget(evaluate_every=NEVER))
    proof = fingerprint.compare(
        before, fingerprint.fingerprint(fixture.model.module), fixture.model.trainable_names
    )
    yield tensors_check(names[1], proof)
    kept = fixture.mean_loss(fixture.model)
    yield resume_check(fixture, names[2], whole, start)
    fixture.model = None  # two large models at once may not fit
    yield load_check(fixture, names[3], whole, kept, rebuild())


def gradient_check(fixture: TrainingFixture, name: str, deterministic: Callable) -> CheckResult:
    """The gradient of one optimizer step, its rows one by one and all at once, without dropout."""
    rows = fixture.subset.size("train")
    found = []
    for limit, unit in ((1, 0.0), (fixture.recipe.budget.micro_batch_tokens, 0.0), (1, fixture.unit)):
        budget = fixture.budget(
            epochs=1.0, batch_rows=rows, micro_batch_tokens=limit, max_grad_norm=1e30, evaluate_every=NEVER
        )
        with (
            capture_gradients(fixture.model) as caught,
            without_dropout(fixture.model.module),
            deterministic(fixture.model),
            embeddings_perturbed(fixture.model.module, unit),
        ):
            fixture.fit(f"gradient-{len(found)}", budget)
        found.append(dict(caught))
    difference, noise = (
        max_relative_difference(found[0], found[1]),
        max_relative_difference(found[0], found[2]),
    )
    size = math.sqrt(sum(float(g.double().square().sum()) for g in found[0].values()))
    text = f"{len(found[0])} tensors' gradients of {rows} rows, one row at a time and together; relative to each tensor (norm of all: {size:.3g})"
    tolerance, reason = fixture.allowed(noise)
    if tolerance > LOST:
        tolerance, reason = LOST, f"{reason}; but no more than {LOST}, or a lost gradient would pass"
    return compare_to_tolerance(name, text, difference, tolerance, reason)


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
    wrong = proof["unexpectedly_changed"] + proof["unexpectedly_unchanged"]
    text = f"sha256 of {proof['tensors']} tensors before and after {STEPS} steps; {proof['trainable']} may change"
    reason = f"exact: {', '.join(wrong[:5])}" if wrong else "exact"
    return compare_to_tolerance(name, text, float(len(wrong)), 0.0, reason)


def resume_check(
    fixture: TrainingFixture, name: str, whole: RunDir, start: dict[str, torch.Tensor]
) -> CheckResult:
    """A run that breaks off inside its third step and goes on from its checkpoint ends where an unbroken one ends."""
    weights.restore(fixture.model, start)
    with contextlib.suppress(SimulatedCrash):
        fixture.fit("cut", fixture.budget(), CUT_AFTER)
    for parameter in fixture.model.trainable().values():
        parameter.data.normal_()  # the checkpoint alone must know where it stood
        parameter.grad = None
    resumed = fixture.fit("cut", fixture.budget())
    path = apart_from(start, weights.read(whole), weights.read(resumed))
    tolerance, reason = 0.0, "exact: the same arithmetic in the same order"
    if fixture.device.type == "cuda":
        weights.restore(fixture.model, start)
        again = apart_from(
            start,
            weights.read(whole),
            weights.read(fixture.fit("again", fixture.budget(evaluate_every=NEVER))),
        )
        tolerance, reason = (
            max(MARGIN * again, 1e-3),
            f"{MARGIN} times what two unbroken runs differ by here ({again:.2g}), at least a thousandth",
        )
    text = f"{len(start)} trained tensors after {STEPS} steps, cut inside step {CUT_AFTER // PER_STEP + 1} and resumed; as a share of how far they moved"
    return compare_to_tolerance(name, text, path, tolerance, reason)


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
    fixture: TrainingFixture, name: str, whole: RunDir, kept: float, fresh: TrainableModel
) -> CheckResult:
    """A freshly built model that is given the saved weights computes the same losses."""
    before = fixture.mean_loss(fresh)
    weights.restore(fresh, weights.read(whole))
    difference = abs(fixture.mean_loss(fresh) - kept)
    text = f"mean loss of {len(fixture.subset.rows)} rows in the trained model and in a new one with its weights (without them it differs by {abs(before - kept):.2g})"
    cuda = fixture.device.type == "cuda"
    return compare_to_tolerance(
        name,
        text,
        difference,
        1e-5 if cuda else 0.0,
        "the GPU may add in another order"
        if cuda
        else "exact: the same arithmetic in the same order",
    )
