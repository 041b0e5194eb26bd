"""Four invariants of training of every method of every task, checked on a few real rows.

* "gradient independent of micro-batches": a step has the same gradient in one micro-batch or many.
* "only trainable tensors change": training changes every trainable tensor and no other.
* "resumed = uninterrupted": a training that crashed and was resumed ends in the same weights.
* "saved = loaded": the stored weights, loaded into a new model, give the same loss.

Each check returns a `CheckResult`: what was compared, the difference, and the tolerance. See
`fixture` for how a tolerance is measured.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
from tarazu.engine.subset_task import SimulatedCrash, SubsetTask, train_subset
from tarazu.engine.trainable import TrainableModel
from tarazu.recipe.schema import NO_VALIDATION, Budget
from tarazu.storage.run_folder import RunDir

Tensors = dict[str, torch.Tensor]

# Length of the short trainings. Rows are separate micro-batches, so a crash can fall within a step.
STEPS, ROWS_PER_STEP = 4, 2
CRASH_AFTER = 5  # batches: in the middle of the third step
# A lost gradient differs by 1, relative to itself. No rounding may excuse that.
MAX_GRADIENT_TOLERANCE = 0.5

GRADIENT = "gradient independent of micro-batches"
CHANGED = "only trainable tensors change"
RESUMED = "resumed = uninterrupted"
LOADED = "saved = loaded"
SAME_ARITHMETIC = "exact: the same arithmetic in the same order"


@dataclass
class TrainingFixture(CheckFixture):
    """A fixture that can also train.

    Args:
        subset: the task, cut down to the fixture's rows.
    """

    subset: SubsetTask

    def budget(self, **changes: Any) -> Budget:
        """A budget of `STEPS` steps, with a validation and a checkpoint after each.

        Args:
            changes: fields of the budget to change.
        """
        values = {
            "tokens": None,
            "epochs": STEPS * ROWS_PER_STEP / len(self.rows),
            "batch_rows": ROWS_PER_STEP,
            "micro_batch_tokens": 1,
            "evaluate_every": 1,
            "monitor": "loss",
            "keep": "last",
            "patience": None,
            "warmup_ratio": 0.0,
            "schedule": "constant",
        }
        return self.recipe.budget.model_copy(update={**values, **changes})

    def train(self, folder_name: str, budget: Budget, crash_after: int | None = None) -> RunDir:
        """Train the model on the rows; a checkpoint in the folder is resumed.

        Args:
            folder_name: name of the run's folder.
            budget: length of the training.
            crash_after: batches before a simulated crash.

        Raises:
            SimulatedCrash: `crash_after` batches were trained.
        """
        subset = SubsetTask(self.subset.task, self.data, self.rows, crash_after)
        method = self.recipe.methods[self.name].model_copy(update={"batch_rows": None})
        recipe = self.recipe.model_copy(update={"budget": budget})
        run = RunDir(self.folder / folder_name / f"seed-{self.seed}")
        return train_subset(subset, self.model, recipe, method, run, Ledger(self.device))

    @torch.no_grad()
    def mean_loss(self, model: TrainableModel) -> float:
        """Mean loss per token of the rows, one by one, in eval mode."""
        model.module.eval()
        with autocast(self.recipe.budget, self.device):
            return self.subset.mean_loss(model, list(range(len(self.rows))), 1)


def shared_checks(
    fixture: TrainingFixture,
    rebuild: Callable[[], TrainableModel],
    deterministic: Callable[[TrainableModel], AbstractContextManager[None]],
) -> Iterator[CheckResult]:
    """Run the four checks of training, in an order that needs only two builds of the model.

    Args:
        fixture: what is checked. Its model is released at the end.
        rebuild: builds the method's model again.
        deterministic: switches off random choices of the objective, besides dropout.
    """
    if not fixture.model.trainable_names:
        for name in (GRADIENT, CHANGED, RESUMED, LOADED):
            yield not_applicable(name, "nothing is trained")
        return
    start = {name: p.detach().clone() for name, p in fixture.model.trainable().items()}
    yield gradient_check(fixture, deterministic)

    # One uninterrupted training is the reference of the other three checks. It validates only at
    # its end, because each validation writes a checkpoint, which takes longer than the steps.
    weights.restore(fixture.model, start)
    hashes = fingerprint.fingerprint(fixture.model.module)
    reference = fixture.train("reference", fixture.budget(evaluate_every=NO_VALIDATION))
    yield changed_check(fixture.model, hashes)
    trained_loss = fixture.mean_loss(fixture.model)
    yield resume_check(fixture, reference, start)
    fixture.model = None  # two large models at once may not fit into memory
    yield load_check(fixture, reference, trained_loss, rebuild())


def gradient_check(
    fixture: TrainingFixture,
    deterministic: Callable[[TrainableModel], AbstractContextManager[None]],
) -> CheckResult:
    """The gradient of a step is the same for one row per micro-batch and for all rows at once."""
    num_rows, full_limit = len(fixture.rows), fixture.recipe.budget.micro_batch_tokens

    def gradients(limit: int, perturbation: float) -> Tensors:
        """Gradients of a step with micro-batches of `limit` tokens and perturbed embeddings."""
        budget = fixture.budget(
            epochs=1.0,
            batch_rows=num_rows,
            micro_batch_tokens=limit,
            max_grad_norm=1e30,
            evaluate_every=NO_VALIDATION,
        )
        module = fixture.model.module
        with (
            capture_gradients(fixture.model) as captured,
            without_dropout(module),
            deterministic(fixture.model),
            embeddings_perturbed(module, perturbation),
        ):
            fixture.train(f"gradient-{limit}-{perturbation:g}", budget)
        return captured

    row_by_row = gradients(1, 0.0)
    difference = max_relative_difference(row_by_row, gradients(full_limit, 0.0))
    noise = max_relative_difference(row_by_row, gradients(1, fixture.unit))
    tolerance, reason = fixture.allowed(noise)
    if tolerance > MAX_GRADIENT_TOLERANCE:
        tolerance = MAX_GRADIENT_TOLERANCE
        reason += f"; at most {tolerance}, so that a lost gradient is noticed"
    compared = (
        f"gradients of {len(row_by_row)} tensors on {num_rows} rows, row by row and together; "
        f"relative to each tensor (norm of all: {_norm(row_by_row):.3g})"
    )
    return compare_to_tolerance(GRADIENT, compared, difference, tolerance, reason)


def max_relative_difference(a: Tensors, b: Tensors) -> float:
    """The largest relative distance |a - b| / |a| over the tensors, by Euclidean norms.

    The norm of a tensor counts as at least 1% of the root mean square of all norms, so that
    rounding in a gradient near zero does not count as a large difference.

    Args:
        a: tensors of any shape by name.
        b: tensors of the same shapes.

    Returns:
        The distance; infinity if the names differ or there are no tensors.
    """
    if a.keys() != b.keys() or not a:
        return math.inf
    min_norm = max(1e-2 * _norm(a) / math.sqrt(len(a)), 1e-30)
    return max(
        float((a[name].double() - b[name].double()).norm())
        / max(float(a[name].double().norm()), min_norm)
        for name in a
    )


def changed_check(model: TrainableModel, hashes_before: dict[str, str]) -> CheckResult:
    """Training changes all trainable tensors and no other.

    Args:
        model: the trained model.
        hashes_before: its fingerprint before training.
    """
    hashes_after = fingerprint.fingerprint(model.module)
    proof = fingerprint.compare(hashes_before, hashes_after, model.trainable_names)
    wrong = proof["unexpectedly_changed"] + proof["unexpectedly_unchanged"]
    compared = (
        f"sha256 of {proof['tensors']} tensors before and after {STEPS} steps; "
        f"{proof['trainable']} are trainable"
    )
    reason = f"exact: {', '.join(wrong[:5])}" if wrong else "exact"
    return compare_to_tolerance(CHANGED, compared, float(len(wrong)), 0.0, reason)


def resume_check(fixture: TrainingFixture, reference: RunDir, start: Tensors) -> CheckResult:
    """A run that crashes within its third step and resumes ends where an uninterrupted one ends.

    Args:
        fixture: what is checked.
        reference: the uninterrupted run.
        start: the weights before training, tensors of any shape by name.
    """
    weights.restore(fixture.model, start)
    with contextlib.suppress(SimulatedCrash):
        fixture.train("resumed", fixture.budget(), CRASH_AFTER)
    # Destroy the weights: only the checkpoint may know them.
    for parameter in fixture.model.trainable().values():
        parameter.data.normal_()
        parameter.grad = None
    resumed = fixture.train("resumed", fixture.budget())
    expected = weights.read(reference)
    difference = relative_to_movement(start, expected, weights.read(resumed))
    tolerance, reason = 0.0, SAME_ARITHMETIC
    if fixture.device.type == "cuda":
        # A GPU may add in another order: measure what two uninterrupted runs differ by.
        weights.restore(fixture.model, start)
        repeated = fixture.train("repeated", fixture.budget(evaluate_every=NO_VALIDATION))
        noise = relative_to_movement(start, expected, weights.read(repeated))
        tolerance = max(MARGIN * noise, 1e-3)
        reason = (
            f"{MARGIN} times the difference of two uninterrupted runs ({noise:.2g}), "
            "at least one thousandth"
        )
    compared = (
        f"{len(start)} trained tensors after {STEPS} steps, with a crash in step "
        f"{CRASH_AFTER // ROWS_PER_STEP + 1} and without; relative to the distance from the start"
    )
    return compare_to_tolerance(RESUMED, compared, difference, tolerance, reason)


def relative_to_movement(start: Tensors, a: Tensors, b: Tensors) -> float:
    """Distance of two trained states, relative to the distance of the first one from the start.

    Args:
        start: tensors before training, of any shape, by name.
        a: tensors after one training.
        b: tensors after another training.

    Returns:
        |a - b| / |a - start| by Euclidean norms; exactly 0 for equal bytes.
    """
    if all(torch.equal(a[name], b[name]) for name in a):
        return 0.0
    movement = _norm({name: a[name].double() - start[name].cpu().double() for name in start})
    distance = _norm({name: a[name].double() - b[name].double() for name in start})
    return distance / max(movement, 1e-30)


def load_check(
    fixture: TrainingFixture, reference: RunDir, trained_loss: float, new_model: TrainableModel
) -> CheckResult:
    """A newly built model with the saved weights has the loss of the trained model.

    Args:
        fixture: what is checked.
        reference: the run whose weights are loaded.
        trained_loss: mean loss of the trained model.
        new_model: a model from the same seed.
    """
    untrained_loss = fixture.mean_loss(new_model)
    weights.restore(new_model, weights.read(reference))
    difference = abs(fixture.mean_loss(new_model) - trained_loss)
    compared = (
        f"mean loss of {len(fixture.rows)} rows in the trained model and in a new one with its "
        f"weights (without them it differs by {abs(untrained_loss - trained_loss):.2g})"
    )
    if fixture.device.type == "cuda":
        tolerance, reason = 1e-5, "the GPU may add in another order"
    else:
        tolerance, reason = 0.0, SAME_ARITHMETIC
    return compare_to_tolerance(LOADED, compared, difference, tolerance, reason)


def _norm(tensors: Tensors) -> float:
    """Euclidean norm of all tensors together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))
