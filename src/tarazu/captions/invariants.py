"""What must hold for a captioning model: what a row shares a batch with, and how its words are computed, must not matter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tarazu.captions.data.vocabulary import PAD, UNK
from tarazu.captions.dataset import CaptionData
from tarazu.captions.evaluation import evaluate
from tarazu.captions.settings import CaptionMethod, CaptionsRecipe
from tarazu.captions.trainable import CaptionBatch, TrainableCaptioner
from tarazu.engine.invariants.fixture import (
    CheckFixture,
    CheckResult,
    compare_to_tolerance,
    max_abs_difference,
)
from tarazu.engine.invariants.perturbations import embeddings_perturbed

IMAGES = 60  # pictures that are read: enough for a vocabulary
BEAMS = 3


def lighter(recipe: CaptionsRecipe) -> CaptionsRecipe:
    """Few pictures, each in one view; fine-tuning from the first step, so that it is seen; no late change of objective."""

    def plain(method: CaptionMethod) -> CaptionMethod:
        if method.kind == "ensemble":
            return method
        tune = (
            method.fine_tune.model_copy(update={"from_epoch": 0, "until_epoch": None})
            if method.fine_tune
            else None
        )
        return method.model_copy(update={"fine_tune": tune, "self_critical": None})

    data = recipe.data.model_copy(
        update={
            "images": min(IMAGES, recipe.data.images or IMAGES),
            "num_augmentations": 1,
            "captions_per_group": 1,
        }
    )
    return recipe.model_copy(
        update={
            "data": data,
            "methods": {name: plain(method) for name, method in recipe.methods.items()},
        }
    )


def put_off(recipe: CaptionsRecipe, name: str) -> str | None:
    """Why a method cannot be built before the study has run; None where it can."""
    return (
        "an ensemble of methods that are checked by themselves"
        if recipe.methods[name].kind == "ensemble"
        else None
    )


def few_rows(data: CaptionData, count: int) -> list[int]:
    """Rows of different pictures, evenly over the training split."""
    size = data.size("train")
    return sorted({place * (size - 1) // max(1, count - 1) for place in range(count)})


@contextlib.contextmanager
def steady(model: TrainableCaptioner) -> Iterator[None]:
    """No word is hidden or drawn inside: the objective without chance."""
    method = model.method
    model.method = method.model_copy(update={"word_dropout": 0.0, "scheduled_sampling": 0.0})
    try:
        yield
    finally:
        model.method = method


@torch.no_grad()
def checks(fixture: CheckFixture) -> Iterator[CheckResult]:
    """One by one, the checks of one method's forward pass and of its beam search, in eval mode."""
    model, rows = fixture.model, fixture.subset.rows
    alone = {i: nats(model, batch_of(fixture, [row]))[0] for i, row in enumerate(rows)}
    with embeddings_perturbed(model.module, fixture.unit):
        noise = max_abs_difference(
            alone, {i: nats(model, batch_of(fixture, [row]))[0] for i, row in enumerate(rows)}
        )
    tolerance, reason = fixture.allowed(noise)
    text = f"nats of {sum(map(len, alone.values()))} words of {len(rows)} captions"
    yield compare_to_tolerance(
        "padded = alone",
        f"{text}, side by side, padded, and each alone",
        max_abs_difference(alone, dict(enumerate(nats(model, batch_of(fixture, rows))))),
        tolerance,
        reason,
    )
    yield future_check(fixture, tolerance, reason)
    yield step_check(fixture, text, tolerance, reason)
    yield beam_check(fixture, tolerance, reason)


def batch_of(fixture: CheckFixture, rows: list[int]) -> CaptionBatch:
    return fixture.subset.task.collate(fixture.model, fixture.subset.data, "train", rows, 10**9)[
        0
    ].to(fixture.device)


def nats(
    model: TrainableCaptioner, batch: CaptionBatch, logits: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Of every word of each row, `<eos>` included."""
    if logits is None:
        logits = model.module.forward_teacher_forced(
            model.inputs_for(batch.image_ids), batch.tokens[:, :-1], image_index=batch.image_index
        )[0]
    targets = batch.tokens[:, 1:]
    losses = (
        F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none").double().cpu()
    )
    return [line[: int(real)] for line, real in zip(losses, (targets != PAD).sum(1), strict=True)]


def future_check(fixture: CheckFixture, tolerance: float, reason: str) -> CheckResult:
    """Other words in the second half of a caption must not change what is said of the first half."""
    before, after = {}, {}
    for i, row in enumerate(fixture.subset.rows):
        batch = batch_of(fixture, [row])
        half = batch.tokens.shape[1] // 2
        changed = batch.tokens.clone()
        changed[:, half:] = torch.where(changed[:, half:] == UNK, UNK + 1, UNK)
        before[i] = nats(fixture.model, batch)[0][: half - 1]
        after[i] = nats(fixture.model, CaptionBatch(changed, batch.image_ids, batch.counts))[0][
            : half - 1
        ]
    text = f"nats of the first halves of {len(before)} captions, before and after every later word was replaced"
    return compare_to_tolerance(
        "no token sees a later one", text, max_abs_difference(before, after), tolerance, reason
    )


def step_check(fixture: CheckFixture, text: str, tolerance: float, reason: str) -> CheckResult:
    """The decoder that writes, one word at a time with a state, says what the decoder that is taught says."""
    model, batch = fixture.model, batch_of(fixture, fixture.subset.rows)
    state, steps = model.module.start(model.inputs_for(batch.image_ids)), []
    for place in range(batch.tokens.shape[1] - 1):
        logits, state, _ = model.module.step(state, batch.tokens[:, place])
        steps.append(logits)
    taught, written = nats(model, batch), nats(model, batch, torch.stack(steps, 1))
    text = f"{text}, one at a time with a state and all at once"
    return compare_to_tolerance(
        "word by word = all at once",
        text,
        max_abs_difference(dict(enumerate(taught)), dict(enumerate(written))),
        tolerance,
        reason,
    )


def beam_check(fixture: CheckFixture, tolerance: float, reason: str) -> CheckResult:
    """A picture's sentence does not depend on the pictures that are described with it."""
    data, recipe = fixture.subset.data, fixture.recipe
    names = list(
        dict.fromkeys(
            data.all_names[data.image_indices["train"][row]] for row in fixture.subset.rows
        )
    )
    together = evaluate.generate_captions(fixture.model, data, "train", recipe, BEAMS, names)
    alone = {
        name: evaluate.generate_captions(fixture.model, data, "train", recipe, BEAMS, [name])[name]
        for name in names
    }
    same = sum(together[name].token_ids == alone[name].token_ids for name in names)
    difference = max(abs(together[name].score - alone[name].score) for name in names)
    text = f"scores of the best of {BEAMS} beams for {len(names)} pictures described together and alone ({same} sentences are the same)"
    return compare_to_tolerance("beams together = alone", text, difference, tolerance, reason)
