"""Estimated cost of a captioning method, from timing a few real rows and images."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from tarazu.captions.data.vocabulary import clean
from tarazu.captions.dataset import CaptionData
from tarazu.captions.evaluation import error_analysis
from tarazu.captions.evaluation.evaluate import mean_loss, split_scorer, training_captions
from tarazu.captions.evaluation.generation import (
    IMAGES_PER_BATCH,
    generate_captions,
    sample_captions,
)
from tarazu.captions.settings import CaptionsRecipe
from tarazu.captions.trainable import TrainableCaptioner
from tarazu.engine.cost import TaskCost

TIMED_ROWS = 64


class CaptionCost(TaskCost):
    """Cost of the captioning methods.

    There is no outline from the model's shape: the decoders are small, so their speed depends on
    the number of steps and not on their FLOPs.
    """

    def skip_reason(self, recipe: CaptionsRecipe, name: str) -> str | None:
        """Return why the method is not estimated, or None."""
        if recipe.methods[name].kind == "ensemble":
            return "an ensemble: it takes no training, and is not estimated"
        return None

    def phase_seconds(
        self, model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe
    ) -> dict[str, float]:
        """Return seconds of a validation, its sample, the final evaluation and generation."""
        beam_widths = list(dict.fromkeys([1, 3, *recipe.extra_beams]))
        generation = {
            beams: _generation_seconds(model, data, recipe, beams) for beams in beam_widths
        }
        validation_fraction = len(data.names["validation"]) / len(data.names["test"])
        validation_captions, test_captions = (
            {name: " ".join(clean(data.captions[name][0])) for name in data.names[split]}
            for split in ("validation", "test")
        )
        test_scorer, validation_scorer = (
            split_scorer(data, "test"),
            split_scorer(data, "validation"),
        )
        scoring = _seconds(lambda: test_scorer.score(test_captions)) * len(beam_widths)
        scoring += _seconds(
            lambda: error_analysis.analyse(
                test_captions, data.references("test"), training_captions(data)
            )
        )
        return {
            "validate": _loss_seconds(model, data, recipe, "validation")
            + generation[1] * validation_fraction
            + _seconds(lambda: validation_scorer.validation_scores(validation_captions)),
            "sample": _seconds(lambda: sample_captions(model, data, recipe, final=False)),
            "evaluate": _loss_seconds(model, data, recipe, "test") + scoring,
            "generate": sum(generation.values()),
        }


def _loss_seconds(
    model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe, split: str
) -> float:
    """Seconds of the loss over a split, from some of its rows."""
    rows = min(TIMED_ROWS, data.size(split))
    limit = recipe.budget.micro_batch_tokens
    seconds = _seconds(lambda: mean_loss(model, data, split, limit, rows))
    return seconds * data.size(split) / rows


def _generation_seconds(
    model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe, beams: int
) -> float:
    """Seconds of captioning every test image, from one batch of images."""
    names = data.names["test"][: IMAGES_PER_BATCH[data.device.type]]
    seconds = _seconds(lambda: generate_captions(model, data, "test", recipe, beams, names))
    return seconds * len(data.names["test"]) / len(names)


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of `work`, including what it started on a GPU."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
