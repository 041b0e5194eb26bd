"""The captions task: the engine's contract, filled in by the modules of this package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from tarazu.captions import prepare_data
from tarazu.captions.build import make_trainable, make_trained
from tarazu.captions.cost import CaptionCost
from tarazu.captions.data import preview
from tarazu.captions.dataset import CaptionData
from tarazu.captions.evaluation import evaluate
from tarazu.captions.evaluation.generation import sample_captions
from tarazu.captions.inference.onnx_export import export_run
from tarazu.captions.invariants import CaptionInvariants
from tarazu.captions.settings import AnyMethod, CaptionsRecipe
from tarazu.captions.trainable import TrainableCaptioner
from tarazu.captions.training.batching import CaptionBatch, make_batches
from tarazu.engine.ledger import Ledger
from tarazu.engine.task import Task
from tarazu.engine.trainable import LossSum
from tarazu.storage.atomic_io import write_json
from tarazu.storage.run_folder import StudyDir


class Captions(Task):
    """Image captioning. See `tarazu.engine.task.Task` for the contract."""

    name = "captions"
    cost = CaptionCost()
    invariants = CaptionInvariants()

    def prepare(
        self, recipe: CaptionsRecipe, folder: StudyDir, device: torch.device
    ) -> CaptionData:
        """Read and split the captions, and extract the features that the methods need.

        Raises:
            UserError: the data or the encoder's weights are missing or unusable.
        """
        data = prepare_data.prepare(recipe, folder, device)
        started = time.perf_counter()
        tunings = [getattr(method, "fine_tune", None) for method in recipe.methods.values()]
        # Reading these cached properties extracts what the cache does not have.
        if any(tuning is None or tuning.from_epoch for tuning in tunings):
            _ = data.feature_maps
        if any(tunings):
            _ = data.pixels
        seconds = time.perf_counter() - started
        summary = {"encoder": data.encoder.summary(), "extraction_seconds": seconds}
        write_json(folder.path / "model.json", summary)
        return data

    def build(
        self,
        recipe: CaptionsRecipe,
        name: str,
        data: CaptionData,
        seed: int,
        device: torch.device,
        folder: StudyDir | None = None,
    ) -> TrainableCaptioner:
        """Build a method; an ensemble gets the trained weights of its members.

        Raises:
            UserError: a member of an ensemble is not trained yet, or the encoder has fewer blocks
                than are to be fine-tuned.
        """
        parts = data.encoder, data.vocabulary
        if recipe.methods[name].kind == "ensemble":
            model = make_trained(recipe, data.folder, name, seed, *parts, data)
        else:
            model = make_trainable(recipe, name, *parts, seed, data)
        model.module.to(device)
        return model

    def group_size(self, method: AnyMethod, data: CaptionData) -> int:
        """Return how many neighbouring rows, the captions of an image, stay together."""
        return method.captions_per_group or data.captions_per_group

    def collate(
        self, model: TrainableCaptioner, data: CaptionData, split: str, rows: list[int], limit: int
    ) -> list[CaptionBatch]:
        """See `make_batches`."""
        return make_batches(data, split, rows, limit, model.groups_captions())

    def loss(self, model: TrainableCaptioner, batch: CaptionBatch) -> LossSum:
        """See `TrainableCaptioner.loss`."""
        return model.loss(batch)

    def validate(
        self, model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe
    ) -> dict[str, float]:
        """Return loss, BLEU-4 and CIDEr of greedy captions on the validation split."""
        return evaluate.validate(model, data, recipe)

    def sample(
        self, model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe, final: bool
    ) -> list[dict[str, Any]]:
        """Return greedy captions of the test split's first image, or of all when `final`."""
        return sample_captions(model, data, recipe, final)

    def evaluate(
        self,
        model: TrainableCaptioner,
        data: CaptionData,
        recipe: CaptionsRecipe,
        folder: Path,
        ledger: Ledger,
    ) -> dict[str, Any]:
        """See `evaluation.evaluate.evaluate`."""
        return evaluate.evaluate(model, data, recipe, folder, ledger)

    def summary(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return the scores of beam 3, with intervals, and two scores of greedy captions."""
        beam, greedy = metrics["decoding"]["beam3"], metrics["decoding"]["greedy"]
        scores = {"loss": metrics["loss"], "perplexity": metrics["perplexity"]}
        scores |= {f"bleu{n}": value for n, value in enumerate(beam["bleu"], 1)}
        scores |= {metric: beam[metric] for metric in ("cider", "rouge_l", "meteor")}
        for metric in ("bleu4", "cider"):
            scores[f"{metric}_low"], scores[f"{metric}_high"] = beam["intervals"][metric]
        return scores | {"bleu4_greedy": greedy["bleu"][3], "cider_greedy": greedy["cider"]}

    def code_paths(self, model: TrainableCaptioner, data: CaptionData) -> dict[str, str]:
        """Return which of several implementations ran, for the ledger."""
        features = f"features kept in {data.precision}"
        if not model.encoder_tuned:
            images = features
        else:
            images = f"pixels, then {features}" if model.refrozen_features else "pixels"
        return {
            "attention": "own",
            "teacher_forcing": model.code_path(),
            "layout": "padded",
            "images": images,
        }

    def preview(self, data: dict[str, Any], rows: int) -> None:
        """Print what `tarazu check` shows of a data.json."""
        preview.show(data, rows=rows)

    def export(self, run_path: str, target: Path, export_format: str) -> None:
        """Write a run as ONNX.

        Raises:
            UserError: the format is another one, or the run is an ensemble.
        """
        export_run(run_path, target, export_format)
