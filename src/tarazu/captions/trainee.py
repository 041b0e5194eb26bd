"""One captioning method with all that it needs while it trains: the model, its settings and the pictures' rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from tarazu.captions import decoders
from tarazu.captions.augment import new_view
from tarazu.captions.cider import Cider
from tarazu.captions.decoding import Ensemble
from tarazu.captions.model import ImageCaptioningModel
from tarazu.captions.objective import END, likelihood
from tarazu.captions.pretrained import Pretrained
from tarazu.captions.replay import Replay
from tarazu.captions.settings import CaptionMethod, CaptionsRecipe
from tarazu.captions.vocabulary import Vocabulary
from tarazu.engine.task import Counts, Group, LossSum, Trainee
from tarazu.errors import BadInput

if TYPE_CHECKING:
    from tarazu.captions.data import Prepared


@dataclass
class CaptionBatch:
    """Rows (image, caption): tokens (B, T + 1) from `<sos>` to the longest row's end, pictures (B,) as places in the
    data."""

    tokens: torch.Tensor
    pictures: torch.Tensor
    counts: Counts

    def to(self, device: torch.device) -> CaptionBatch:
        return CaptionBatch(
            self.tokens.to(device, non_blocking=True), self.pictures.to(device, non_blocking=True), self.counts
        )


@dataclass
class CaptionTrainee(Trainee):
    """Args:
    method: its settings; None for an ensemble, which is not trained.
    data: where its pictures' rows come from; None for a model that is only used.
    tuned: whether the encoder's own weights may differ from the pretrained ones: then only pixels will do.
    seen: features of pictures by their names, while weights stand still (in the final evaluation); else None.
    """

    method: CaptionMethod | None = None
    data: Prepared | None = None
    tuned: bool = False
    pooled: bool = False
    cider: Cider | None = None
    replay: Replay | None = None
    seen: dict[tuple[str, ...], torch.Tensor] | None = None

    def look(self, pictures: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Places in the data (B,) -> what the model is given: pixels, maps, or means of maps.

        In training, with the rows' tokens, a random view of each picture is given.
        """
        vary = self.module.training and tokens is not None and self.data.views > 1
        if self.reads_pixels():
            seen = self.data.pixels.take(pictures)
            return new_view(seen, self.data.sided(tokens), self.data.crop) if vary else seen
        rows = self.data.view_rows(pictures, tokens) if vary else pictures
        return (self.data.means if self.pooled else self.data.maps).take(rows)

    def likelihood(self, pictures: torch.Tensor, tokens: torch.Tensor) -> LossSum:
        """`objective.likelihood` of a batch; on a GPU, in training, played back from a recording of it."""
        if self.replay is None or not self.module.training or not pictures.is_cuda:
            return likelihood(self.module, pictures, tokens, self.method, self.fraction)
        total, *extra = self.replay(pictures, tokens)
        return LossSum(total, 0, extra[0] if extra else None)

    def how_taught(self) -> str:
        """For the ledger."""
        if self.method is None or not self.method.fast:
            return "plain"
        replayed = self.replay is not None and (self.replay.why or ("recorded" if self.replay.records else ""))
        return ", ".join(filter(None, [self.module.decoder.fast_path, replayed]))

    def reads_pixels(self) -> bool:
        """Until its blocks thaw, a fine-tuned encoder sees what the frozen one saw."""
        waiting = (
            self.module.training
            and self.method is not None
            and self.method.fine_tune
            and self.epoch < self.method.fine_tune.from_epoch
        )
        return self.tuned and not waiting


def model_of(method: CaptionMethod, encoder: Pretrained, words: int) -> ImageCaptioningModel:
    """The whole model of a method's settings; the decoder is freshly initialised from torch's current seed."""
    decoder = decoders.make(method, words, encoder.module.width, encoder.side**2)
    half = method.fine_tune is not None and method.fine_tune.precision == "bfloat16"
    return ImageCaptioningModel(encoder.module, decoder, method.feature_dropout, half)


def trainee_of(
    recipe: CaptionsRecipe,
    name: str,
    encoder: Pretrained,
    vocabulary: Vocabulary,
    seed: int,
    data: Prepared | None = None,
) -> CaptionTrainee:
    """A method of the recipe, ready to be trained, or to be given its weights."""
    method = recipe.methods[name]
    torch.manual_seed(seed)
    model = model_of(method, encoder, len(vocabulary))
    names = {f"decoder.{n}" for n, _ in model.decoder.named_parameters()}
    groups = []
    if method.fine_tune:
        groups = [
            Group(
                frozenset(f"encoder.{n}" for n in _thawed(method, encoder)),
                method.fine_tune.learning_rate,
                method.fine_tune.from_epoch,
            )
        ]
        names |= groups[0].names
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in names)
    cider = None
    if method.self_critical and data is not None:
        cider = Cider({image: [f"{text} {END}" for text in texts] for image, texts in data.references("train").items()})
    pooled = model.decoder.looks_at == "pooled"
    trainee = CaptionTrainee(
        model,
        frozenset(names),
        method.learning_rate,
        groups,
        method=method,
        data=data,
        tuned=bool(groups),
        pooled=pooled,
        cider=cider,
    )
    if method.fast and not method.scheduled_sampling:  # whose share changes with every step
        trainee.replay = Replay(partial(_losses, model, method), model)
    return trainee


def _losses(
    model: ImageCaptioningModel, method: CaptionMethod, pictures: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    found = likelihood(model, pictures, tokens, method, 0.0)
    return (found.total,) if found.extra is None else (found.total, found.extra)


def together(members: list[CaptionTrainee], data: Prepared | None) -> CaptionTrainee:
    """Trained members as one that is not trained itself."""
    module = Ensemble([member.module for member in members])
    module.requires_grad_(False)
    return CaptionTrainee(
        module, frozenset(), data=data, tuned=any(m.tuned for m in members), pooled=all(m.pooled for m in members)
    )


def _thawed(method: CaptionMethod, encoder: Pretrained) -> frozenset[str]:
    try:
        return encoder.module.last_blocks(method.fine_tune.blocks)
    except ValueError as error:
        raise BadInput(str(error), where="fine_tune.blocks", todo="fewer blocks") from None
