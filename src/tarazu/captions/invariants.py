"""The invariants of a captioning model.

The losses of a caption depend neither on the other rows of its batch nor on later tokens, and
decoding token by token computes the same as teacher forcing. A caption does not depend on the
images that are captioned with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tarazu.captions.data.vocabulary import PAD, UNK
from tarazu.captions.dataset import CaptionData
from tarazu.captions.evaluation.generation import generate_captions
from tarazu.captions.settings import AnyMethod, CaptionsRecipe
from tarazu.captions.trainable import TrainableCaptioner
from tarazu.captions.training.batching import CaptionBatch, make_batches
from tarazu.engine.invariants.fixture import (
    CheckFixture,
    CheckResult,
    TaskInvariants,
    compare_to_tolerance,
    max_abs_difference,
)
from tarazu.engine.invariants.perturbations import embeddings_perturbed

MAX_IMAGES = 60  # images that are read: enough for a vocabulary
BEAMS = 3
NO_LIMIT = 10**9  # tokens of a batch


class CaptionInvariants(TaskInvariants):
    """The checks that the captions task adds to the shared ones."""

    def lighter(self, recipe: CaptionsRecipe) -> CaptionsRecipe:
        """Return the recipe with few images, one view each, and one objective from step 0 on."""
        data = recipe.data.model_copy(
            update={
                "images": min(MAX_IMAGES, recipe.data.images or MAX_IMAGES),
                "num_augmentations": 1,
                "captions_per_group": 1,
            }
        )
        methods = {name: _one_phase(method) for name, method in recipe.methods.items()}
        return recipe.model_copy(update={"data": data, "methods": methods})

    def skip_reason(self, recipe: CaptionsRecipe, name: str) -> str | None:
        """Return why the method cannot be checked, or None."""
        if recipe.methods[name].kind == "ensemble":
            return "an ensemble of methods that are checked by themselves"
        return None

    def subset_rows(self, data: CaptionData, count: int) -> list[int]:
        """Return rows of different images, spread evenly over the training split."""
        last = data.size("train") - 1
        return sorted({i * last // max(1, count - 1) for i in range(count)})

    @contextlib.contextmanager
    def deterministic(self, model: TrainableCaptioner) -> Iterator[None]:
        """Switch off word dropout and scheduled sampling inside the context."""
        method = model.method
        model.method = method.model_copy(update={"word_dropout": 0.0, "scheduled_sampling": 0.0})
        try:
            yield
        finally:
            model.method = method

    @torch.no_grad()
    def checks(self, fixture: CheckFixture) -> Iterator[CheckResult]:
        """Check one method's forward pass and beam search, in eval mode.

        The losses of each caption alone are the reference. Perturbing the embeddings measures how
        far rounding moves them, which gives the tolerance.
        """
        model = fixture.model
        alone = _losses_alone(fixture)
        with embeddings_perturbed(model.module, fixture.unit):
            noise = max_abs_difference(alone, _losses_alone(fixture))
        tolerance, reason = fixture.allowed(noise)
        num_tokens = sum(map(len, alone.values()))
        compared = f"losses (nats) of {num_tokens} tokens of {len(fixture.rows)} captions"
        padded = loss_per_token(model, _batch(fixture, fixture.rows))
        yield compare_to_tolerance(
            "padded = alone",
            f"{compared}: padded in one batch, and each alone",
            max_abs_difference(alone, dict(enumerate(padded))),
            tolerance,
            reason,
        )
        yield _check_causality(fixture, tolerance, reason)
        yield _check_stepwise(fixture, compared, tolerance, reason)
        yield _check_beams(fixture, tolerance, reason)


def loss_per_token(
    model: TrainableCaptioner, batch: CaptionBatch, logits: Tensor | None = None
) -> list[Tensor]:
    """Return the loss of every real token, in nats, as one tensor (tokens,) for each row.

    Args:
        model: the model, in eval mode.
        batch: the rows.
        logits: (B, T, V) to use instead of the model's own teacher-forced ones.
    """
    if logits is None:
        logits = model.module.forward_teacher_forced(
            model.inputs_for(batch.image_ids), batch.tokens[:, :-1], image_index=batch.image_index
        )[0]
    targets = batch.tokens[:, 1:]
    losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    lengths = (targets != PAD).sum(1)
    return [row[: int(length)] for row, length in zip(losses.double().cpu(), lengths, strict=True)]


def _one_phase(method: AnyMethod) -> AnyMethod:
    """The method with fine-tuning from step 0 on and without self-critical training."""
    if method.kind == "ensemble":
        return method
    fine_tune = method.fine_tune
    if fine_tune:
        fine_tune = fine_tune.model_copy(update={"from_epoch": 0, "until_epoch": None})
    return method.model_copy(update={"fine_tune": fine_tune, "self_critical": None})


def _batch(fixture: CheckFixture, rows: list[int]) -> CaptionBatch:
    """Training rows as one batch on the fixture's device."""
    grouped = fixture.model.groups_captions()
    batches = make_batches(fixture.data, "train", rows, NO_LIMIT, grouped)
    return batches[0].to(fixture.device)


def _losses_alone(fixture: CheckFixture) -> dict[int, Tensor]:
    """The losses (tokens,) of each row in a batch of its own."""
    return {
        i: loss_per_token(fixture.model, _batch(fixture, [row]))[0]
        for i, row in enumerate(fixture.rows)
    }


def _check_causality(fixture: CheckFixture, tolerance: float, reason: str) -> CheckResult:
    """Other tokens in the second half of a caption must not change the losses of the first half."""
    before, after = {}, {}
    for i, row in enumerate(fixture.rows):
        batch = _batch(fixture, [row])
        half = batch.tokens.shape[1] // 2
        changed = batch.tokens.clone()
        changed[:, half:] = torch.where(changed[:, half:] == UNK, UNK + 1, UNK)
        changed_batch = CaptionBatch(changed, batch.image_ids, batch.counts)
        before[i] = loss_per_token(fixture.model, batch)[0][: half - 1]
        after[i] = loss_per_token(fixture.model, changed_batch)[0][: half - 1]
    compared = (
        f"losses (nats) of the first halves of {len(before)} captions, before and after replacing "
        "every later token"
    )
    return compare_to_tolerance(
        "no token sees a later one", compared, max_abs_difference(before, after), tolerance, reason
    )


def _check_stepwise(
    fixture: CheckFixture, compared: str, tolerance: float, reason: str
) -> CheckResult:
    """Decoding token by token with a state must compute the logits of teacher forcing."""
    model, batch = fixture.model, _batch(fixture, fixture.rows)
    state, step_logits = model.module.start(model.inputs_for(batch.image_ids)), []
    for position in range(batch.tokens.shape[1] - 1):
        logits, state, _ = model.module.step(state, batch.tokens[:, position])
        step_logits.append(logits)
    teacher_forced = loss_per_token(model, batch)
    stepwise = loss_per_token(model, batch, torch.stack(step_logits, 1))
    return compare_to_tolerance(
        "token by token = all at once",
        f"{compared}: token by token with a state, and all at once",
        max_abs_difference(dict(enumerate(teacher_forced)), dict(enumerate(stepwise))),
        tolerance,
        reason,
    )


def _check_beams(fixture: CheckFixture, tolerance: float, reason: str) -> CheckResult:
    """The caption of an image must not depend on the images that are captioned with it."""
    model, data, recipe = fixture.model, fixture.data, fixture.recipe
    image_ids = data.image_indices["train"][fixture.rows]
    names = list(dict.fromkeys(data.all_names[i] for i in image_ids))
    together = generate_captions(model, data, "train", recipe, BEAMS, names)
    alone = {
        name: generate_captions(model, data, "train", recipe, BEAMS, [name])[name] for name in names
    }
    same = sum(together[name].token_ids == alone[name].token_ids for name in names)
    difference = max(abs(together[name].score - alone[name].score) for name in names)
    compared = (
        f"scores of the best of {BEAMS} beams for {len(names)} images: decoded together, and each "
        f"alone ({same} captions are equal)"
    )
    return compare_to_tolerance("beams together = alone", compared, difference, tolerance, reason)
