"""A finished run, loaded for use: its model, its vocabulary and its image preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tarazu.captions.build import make_trained
from tarazu.captions.data.images import pixels
from tarazu.captions.data.vocabulary import Vocabulary
from tarazu.captions.encoder import pretrained
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.captions.settings import CaptionsRecipe
from tarazu.errors import UserError
from tarazu.recipe.schema import load as load_recipe
from tarazu.storage.atomic_io import reporting_corruption
from tarazu.storage.run_folder import StudyDir, find_run


@dataclass(frozen=True)
class LoadedCaptioner:
    """A trained captioning model.

    Args:
        model: the module, in eval mode on `device`.
        encoder: the pretrained encoder; it defines the preprocessing.
        vocabulary: the vocabulary.
        recipe: the study's recipe.
        device: where the model is.
    """

    model: nn.Module
    encoder: Pretrained
    vocabulary: Vocabulary
    recipe: CaptionsRecipe
    device: torch.device

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Return the image as the model gets it, uint8 (S, S, 3)."""
        return pixels(image, self.encoder.size, self.encoder.resample)

    def tensor(self, images: list[np.ndarray]) -> Tensor:
        """Return images, as `pixels` gives them, as a batch (B, S, S, 3) on the device."""
        return torch.from_numpy(np.stack(images)).to(self.device)


def load(path: str | Path, device: str = "auto") -> LoadedCaptioner:
    """Load a run.

    Args:
        path: DIR/METHOD or DIR/METHOD/seed-N.
        device: a torch device; "auto" is the GPU if there is one.

    Raises:
        UserError: there is no finished captioning run.
    """
    study, run = find_run(path)
    with study.in_working_dir() as here:
        return _load(here, run.name, run.seed, path, device)


def _load(study: StudyDir, name: str, seed: int, path: str | Path, device: str) -> LoadedCaptioner:
    recipe = load_recipe(study.path / "resolved.yaml")
    if not isinstance(recipe, CaptionsRecipe) or name not in recipe.methods:
        raise UserError(
            "not a captioning run", location=str(path), hint="`tarazu chat` loads chat models"
        )
    vocabulary_path = study.path / "vocabulary.json"
    if not vocabulary_path.exists():
        raise UserError(
            "the vocabulary is missing",
            location=str(vocabulary_path),
            hint="`tarazu resume` writes it again",
        )
    vocabulary = Vocabulary.from_json(vocabulary_path.read_bytes(), str(vocabulary_path))
    encoder = pretrained.load(recipe.encoder)
    _require_same_encoder(study, encoder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_trained(recipe, study, name, seed, encoder, vocabulary).module
    return LoadedCaptioner(
        model.to(device).eval(), encoder, vocabulary, recipe, torch.device(device)
    )


def _require_same_encoder(study: StudyDir, encoder: Pretrained) -> None:
    """Raise `UserError` unless the encoder is the one that the run was trained on."""
    with reporting_corruption(study.path / "model.json"):
        summary = (study.read_json("model.json") or {}).get("encoder") or {}
        trained_on = summary.get("sha256") or ""
        hint = f"set encoder.file in resolved.yaml to the weights with sha256 {trained_on[:12]}"
    if trained_on and trained_on != encoder.sha256:
        raise UserError(
            "the encoder's weights are not those that this run was trained on",
            location=str(study.path),
            hint=hint,
        )
