"""A finished run, loaded to be used: its model, its words, and the way its pictures are prepared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tarazu.captions.data.images import pixels
from tarazu.captions.data.vocabulary import Vocabulary
from tarazu.captions.encoder import pretrained
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.captions.settings import CaptionsRecipe
from tarazu.captions.trainable import TrainableCaptioner, make_ensemble, make_trainable
from tarazu.engine import weights
from tarazu.errors import UserError
from tarazu.recipe.schema import load as load_recipe
from tarazu.storage.atomic_io import reporting_corruption
from tarazu.storage.run_folder import RunDir, StudyDir, find_run


@dataclass(frozen=True)
class LoadedCaptioner:
    """A trained captioning model in eval mode, on `device`."""

    trainable: TrainableCaptioner
    encoder: Pretrained
    vocabulary: Vocabulary
    recipe: CaptionsRecipe
    device: torch.device

    @property
    def model(self) -> nn.Module:
        return self.trainable.module

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """The picture as the model sees it, uint8 (S, S, 3)."""
        return pixels(picture, self.encoder.size, self.encoder.resample)

    def tensor(self, pictures: list[np.ndarray]) -> Tensor:
        """Pictures as `pixels` gives them -> (B, S, S, 3) on the device."""
        return torch.from_numpy(np.stack(pictures)).to(self.device)


def load(path: str | Path, device: str = "auto") -> LoadedCaptioner:
    """The run at DIR/METHOD or DIR/METHOD/seed-N. Raises `UserError` when it is not a finished captioning run."""
    study, run = find_run(path)
    with study.in_working_dir() as here:
        return _loaded(here, here.run(run.name, run.seed), path, device)


def _loaded(study: StudyDir, run: RunDir, path: str | Path, device: str) -> LoadedCaptioner:
    recipe = load_recipe(study.path / "resolved.yaml")
    if recipe.task != "captions" or run.name not in recipe.methods:
        raise UserError(
            "not a captioning run", location=str(path), hint="`tarazu chat` talks to chat models"
        )
    words = study.path / "vocabulary.json"
    if not words.exists():
        raise UserError(
            "the vocabulary is missing", location=str(words), hint="`tarazu resume` writes it again"
        )
    vocabulary = Vocabulary.from_json(words.read_bytes(), str(words))
    encoder = pretrained.load(recipe.encoder)
    _same_encoder(study, encoder)
    place = torch.device(
        "cuda"
        if device == "auto" and torch.cuda.is_available()
        else "cpu"
        if device == "auto"
        else device
    )
    trainable = _trained(recipe, study, run, encoder, vocabulary)
    trainable.module.to(place).eval()
    return LoadedCaptioner(trainable, encoder, vocabulary, recipe, place)


def _trained(
    recipe: CaptionsRecipe,
    study: StudyDir,
    run: RunDir,
    encoder: Pretrained,
    vocabulary: Vocabulary,
) -> TrainableCaptioner:
    method = recipe.methods[run.name]
    if method.kind == "ensemble":
        members = []
        for member in method.members:
            name, _, seed = member.partition("/seed-")
            fresh = replace(
                encoder, module=pretrained.load(recipe.encoder).module
            )  # a member may have tuned its own
            members.append(
                _trained(
                    recipe,
                    study,
                    study.run(name, int(seed) if seed else run.seed),
                    fresh,
                    vocabulary,
                )
            )
        return make_ensemble(members, None, method.flip_tta)
    if not run.weights.exists():
        raise UserError(
            "this run has no weights yet",
            location=str(run.path),
            hint="let `tarazu run` or `tarazu resume` finish it",
        )
    trainable = make_trainable(recipe, run.name, encoder, vocabulary, run.seed)
    weights.restore(trainable, weights.read(run))
    return trainable


def _same_encoder(study: StudyDir, encoder: Pretrained) -> None:
    with reporting_corruption(study.path / "model.json"):
        told = ((study.read_json("model.json") or {}).get("encoder") or {}).get("sha256")
        shown = told[:12] if told else ""
    if told and told != encoder.sha256:
        raise UserError(
            "the encoder's weights are not those that this run was trained on",
            location=str(study.path),
            hint="set encoder.file in resolved.yaml to the weights with sha256 " + shown,
        )
