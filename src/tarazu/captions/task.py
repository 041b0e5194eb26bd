"""Image captioning, as the engine sees it: pictures and captions in, losses, sentences and scores out."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tarazu.captions import dataset as prepared
from tarazu.captions.data.vocabulary import PAD
from tarazu.captions.dataset import CaptionData
from tarazu.captions.evaluation import evaluate as evaluation
from tarazu.captions.settings import CaptionsRecipe
from tarazu.captions.trainable import (
    CaptionBatch,
    TrainableCaptioner,
    make_ensemble,
    make_trainable,
)
from tarazu.engine import weights
from tarazu.engine.counts import TokenCounts
from tarazu.engine.task import Task
from tarazu.engine.trainable import LossSum
from tarazu.errors import UserError
from tarazu.storage.atomic_io import write_json
from tarazu.storage.run_folder import StudyDir

if TYPE_CHECKING:
    from tarazu.engine.ledger import Ledger


WIDTHS = 4  # on a GPU the words of a batch are filled up to a multiple of this


class Captions(Task):
    """Image captioning. See `tarazu.engine.task.Task` for the contract."""

    name = "captions"

    def prepare(
        self, recipe: CaptionsRecipe, folder: StudyDir, device: torch.device
    ) -> CaptionData:
        data = prepared.prepare(recipe, folder, device)
        tunes = [getattr(method, "fine_tune", None) for method in recipe.methods.values()]
        began = time.perf_counter()
        if any(tune is None or tune.from_epoch for tune in tunes):
            data.feature_maps.rows  # noqa: B018 (extracts what is not in the cache)
        if any(tunes):
            data.pixels.rows  # noqa: B018
        write_json(
            folder.path / "model.json",
            {"encoder": data.encoder.summary(), "extraction_seconds": time.perf_counter() - began},
        )
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
        method = recipe.methods[name]
        if method.kind == "ensemble":
            members = [
                self._trained(recipe, member, data, seed, device) for member in method.members
            ]
            return make_ensemble(members, data, method.flip_tta)
        encoder = replace(
            data.encoder, module=copy.deepcopy(data.encoder.module)
        )  # each method may change its own
        model = make_trainable(recipe, name, encoder, data.vocabulary, seed, data)
        model.module.to(device)
        return model

    def collate(
        self, model: TrainableCaptioner, data: CaptionData, split: str, rows: list[int], limit: int
    ) -> list[CaptionBatch]:
        tokens, places = data.tokens[split], data.image_indices[split]
        rows = np.asarray(rows)
        lengths = (tokens[rows] != PAD).sum(1)
        judged = (
            split != "train" and data.captions_per_group > 1
        )  # then an image's captions stay together, and it is looked at once
        if (
            len(rows) * lengths.max() > limit and not judged
        ):  # rows of like length together need the least padding
            order = np.argsort(-lengths, kind="stable")
            rows, lengths = rows[order], lengths[order]
        batches, start = [], 0
        while start < len(rows):
            end = start + max(1, limit // int(lengths[start:].max()))
            width, real = int(lengths[start:end].max()), int((lengths[start:end] - 1).sum())
            if (
                data.device.type == "cuda"
            ):  # few widths, so that few shapes are recorded (see engine.recording)
                width = min(1 + -(-(width - 1) // WIDTHS) * WIDTHS, tokens.shape[1])
            chosen = rows[start:end]
            counts = TokenCounts(len(chosen), real, real, len(chosen) * (width - 1) - real)
            pictures, which = places[chosen], None
            if judged or (len(chosen) == len(rows) and model.groups_captions()):
                pictures, which = _once(pictures)
            tensors = (
                None if x is None else torch.from_numpy(x)
                for x in (tokens[chosen, :width], pictures, which)
            )
            words, pictures, which = tensors
            batches.append(CaptionBatch(words, pictures, counts, which))
            start = end
        return batches

    def loss(self, model: TrainableCaptioner, batch: CaptionBatch) -> LossSum:
        late = model.method.self_critical if model.method and model.module.training else None
        critical = late and model.epoch >= late.from_epoch
        found = model.self_critical_loss(batch) if critical else model.cross_entropy_loss(batch)
        return LossSum(found.total, batch.counts.supervised, found.penalty)

    def validate(
        self, model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe
    ) -> dict[str, float]:
        loss = self.mean_loss(model, data, "validation", recipe.budget.micro_batch_tokens)
        written = evaluation.generate_captions(model, data, "validation", recipe, beams=1)
        return {
            "loss": loss,
            **evaluation.scorer(data, "validation").validation_scores(
                evaluation.texts(written, data)
            ),
        }

    def mean_loss(
        self, model: TrainableCaptioner, data: CaptionData, split: str, limit: int
    ) -> float:
        """Nats per word over all of a split's captions."""
        total, count = torch.zeros((), device=data.device, dtype=torch.float64), 0
        for batch in self.collate(model, data, split, list(range(data.size(split))), limit):
            found = self.loss(model, batch.to(data.device))
            total, count = total + found.total.double(), count + found.count
        return float(total) / count

    def sample(
        self, model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe, final: bool
    ) -> list[dict]:
        names = data.names["test"] if final else data.names["test"][:1]
        written = evaluation.generate_captions(model, data, "test", recipe, beams=1, names=names)
        return [
            {"id": name, "image": data.save_thumbnail(name) if not final else None, "output": text}
            for name, text in evaluation.texts(written, data).items()
        ]

    def evaluate(
        self,
        model: TrainableCaptioner,
        data: CaptionData,
        recipe: CaptionsRecipe,
        folder: Path,
        ledger: Ledger,
    ) -> dict:
        with ledger.phase("evaluate"), torch.autocast(data.device.type, enabled=False):
            loss = self.mean_loss(model, data, "test", recipe.budget.micro_batch_tokens)
        found = evaluation.evaluate(model, data, recipe, folder, ledger)
        return {
            "split": "test",
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "images": len(data.names["test"]),
            **found,
        }

    def summary(self, metrics: dict) -> dict[str, Any]:
        """The figures of one run that the comparison table shows: beam 3, and greedy beside it."""
        beam, plain = metrics["decoding"]["beam3"], metrics["decoding"]["greedy"]
        figures = {"loss": metrics["loss"], "perplexity": metrics["perplexity"]}
        figures |= {f"bleu{n}": value for n, value in enumerate(beam["bleu"], 1)}
        figures |= {name: beam[name] for name in ("cider", "rouge_l", "meteor")}
        figures |= {
            "bleu4_low": beam["intervals"]["bleu4"][0],
            "bleu4_high": beam["intervals"]["bleu4"][1],
        }
        figures |= {
            "cider_low": beam["intervals"]["cider"][0],
            "cider_high": beam["intervals"]["cider"][1],
        }
        return figures | {"bleu4_greedy": plain["bleu"][3], "cider_greedy": plain["cider"]}

    def weights(self, model: TrainableCaptioner) -> dict[str, torch.Tensor]:
        return {name: parameter.data for name, parameter in model.trainable().items()}

    def trained_tensors(self, model: TrainableCaptioner) -> list[dict]:
        """Names and shapes of what is trained."""
        return [
            {"name": name, "shape": list(parameter.shape)}
            for name, parameter in model.trainable().items()
        ][:400]

    def code_paths(self, model: TrainableCaptioner, data: CaptionData) -> dict[str, str]:
        """Which code ran, for the ledger."""
        return {
            "attention": "own",
            "teacher_forcing": model.code_path(),
            "layout": "padded",
            "images": _pictures(model, data),
        }

    def export(self, model: TrainableCaptioner, to: Path, form: str) -> None:
        """ONNX: see `captions.export`, which `tarazu export` calls with a finished run."""
        from tarazu.captions.inference.onnx_export import write_onnx

        write_onnx(model.module, model.data.encoder, model.data.vocabulary, to)

    def _trained(
        self,
        recipe: CaptionsRecipe,
        member: str,
        data: CaptionData,
        seed: int,
        device: torch.device,
    ) -> TrainableCaptioner:
        """A finished method of the same study: NAME, or NAME/seed-N."""
        name, _, other = member.partition("/")
        run = data.folder.run(name, int(other.removeprefix("seed-")) if other else seed)
        if not run.weights.exists():
            raise UserError(
                "a member of the ensemble is not trained yet",
                location=str(run.path),
                hint="let it stand above the ensemble in the recipe, with the same seed",
            )
        model = self.build(recipe, name, data, seed, device)
        weights.restore(model, weights.read(run))
        return model


def _once(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each picture once, and the place of each row's among them.

    In the order in which they come: a reward for a share of a step's pictures takes the first, which must not be the data's first.
    """
    found, first, which = np.unique(pictures, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return found[order], np.argsort(order)[which]


def _pictures(model: TrainableCaptioner, data: CaptionData) -> str:
    """What the decoder was given of them, for the ledger."""
    if not model.encoder_tuned:
        return f"features kept in {data.precision}"
    return (
        "pixels"
        if model.refrozen_features is None
        else f"pixels, then features kept in {data.precision}"
    )
