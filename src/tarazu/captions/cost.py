"""What a captioning method takes: timed on a few real rows and pictures and multiplied out."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from tarazu.captions.data.vocabulary import clean
from tarazu.captions.dataset import CaptionData
from tarazu.captions.evaluation import error_analysis, evaluate
from tarazu.captions.settings import CaptionsRecipe
from tarazu.captions.task import Captions
from tarazu.captions.trainable import TrainableCaptioner

ROWS = 64


def put_off(recipe: CaptionsRecipe, name: str) -> str | None:
    """Why a method cannot be built before the study has run; None where it can."""
    return (
        "an ensemble: it takes no training, and is not estimated"
        if recipe.methods[name].kind == "ensemble"
        else None
    )


def heaviest(data: CaptionData, rows: list[int]) -> list[int]:
    """Captions are of one size, more or less: the rows themselves."""
    return rows


def outline(
    task: Captions, recipe: CaptionsRecipe, name: str, data: CaptionData, device: torch.device
) -> None:
    """Nothing is told from the shape alone: the decoders are small, and their speed is their steps'."""


def parts(
    task: Captions, model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe
) -> dict[str, float]:
    """Seconds of one validation, of its sampled caption, and of the final evaluation and generation."""
    widths = list(dict.fromkeys([1, 3, *recipe.extra_beams]))
    written = {beams: writing(model, data, recipe, beams) for beams in widths}
    share = len(data.names["validation"]) / len(data.names["test"])
    lines = {
        split: {name: " ".join(clean(data.captions[name][0])) for name in data.names[split]}
        for split in ("validation", "test")
    }
    references = [text for texts in data.references("train").values() for text in texts]
    judge, quick = evaluate.scorer(data, "test"), evaluate.scorer(data, "validation")
    scored = timed(lambda: judge.score(lines["test"])) * len(widths)
    scored += timed(
        lambda: error_analysis.analyse(lines["test"], data.references("test"), references)
    )
    return {
        "validate": losses(task, model, data, recipe, "validation")
        + written[1] * share
        + timed(lambda: quick.validation_scores(lines["validation"])),
        "sample": timed(lambda: task.sample(model, data, recipe, final=False)),
        "evaluate": losses(task, model, data, recipe, "test") + scored,
        "generate": sum(written.values()),
    }


def losses(
    task: Captions, model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe, split: str
) -> float:
    """Seconds of the loss over a split."""
    rows = list(range(min(ROWS, data.size(split))))

    def work() -> None:
        for batch in task.collate(model, data, split, rows, recipe.budget.micro_batch_tokens):
            float(task.loss(model, batch.to(data.device)).total)

    return timed(work) * data.size(split) / len(rows)


def writing(
    model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe, beams: int
) -> float:
    """Seconds of describing every test picture: as many as go together are timed."""
    names = data.names["test"][: evaluate.IMAGES_PER_BATCH[data.device.type]]
    return (
        timed(lambda: evaluate.generate_captions(model, data, "test", recipe, beams, names))
        * len(data.names["test"])
        / len(names)
    )


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
