"""One captioning method with all that it needs while it trains: the model, its settings and the pictures' rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from tarazu.captions.data.augmentation import random_view
from tarazu.captions.data.vocabulary import PAD, Vocabulary
from tarazu.captions.decoding.beam_search import Ensemble
from tarazu.captions.decoding.mirrored_view import HorizontalFlip
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.captions.model import decoders
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.model.refrozen_features import FeatureTable, encode_all
from tarazu.captions.settings import CaptionMethod, CaptionsRecipe
from tarazu.captions.training.objective import cross_entropy_loss, self_critical_loss
from tarazu.engine.cuda_graphs.recorder import GraphedFunction
from tarazu.engine.counts import TokenCounts
from tarazu.engine.trainable import LossSum, ParameterGroup, TrainableModel, TrainingPhase
from tarazu.errors import UserError

if TYPE_CHECKING:
    from tarazu.captions.dataset import CaptionData

OFTEN = 3  # a shape is recorded when it comes so often: the last batch of an epoch may be the only one of its size


@dataclass
class CaptionBatch:
    """Rows (image, caption): tokens (B, T + 1) from `<sos>` to the longest row's end, pictures (B,) as places in the
    data; or, with `rows` (B,), every picture once, and the picture of each row."""

    tokens: torch.Tensor
    image_ids: torch.Tensor
    counts: TokenCounts
    image_index: torch.Tensor | None = None

    def to(self, device: torch.device) -> CaptionBatch:
        tokens, pictures = (x.to(device, non_blocking=True) for x in (self.tokens, self.image_ids))
        rows = None if self.image_index is None else self.image_index.to(device, non_blocking=True)
        return CaptionBatch(tokens, pictures, self.counts, rows)


@dataclass
class TrainableCaptioner(TrainableModel):
    """Args:
    method: its settings; None for an ensemble, which is not trained.
    data: where its pictures' rows come from; None for a model that is only used.
    encoder_tuned: whether the encoder's own weights may differ from the pretrained ones: then only pixels will do.
    seen: features of pictures by their names, while weights stand still (in the final evaluation); else None.
    kept: what an encoder that stands still again sees of all pictures; made when it is first asked for.
    replay, critic: what plays the loss of a batch, and the loss with the reward, on a GPU; only one of them holds recordings
        at a time, as each has a place of its own for every gradient.
    """

    method: CaptionMethod | None = None
    data: CaptionData | None = None
    encoder_tuned: bool = False
    pooled: bool = False
    graphed_loss: GraphedFunction | None = None
    graphed_scst: GraphedFunction | None = None
    encoded_images: dict[tuple[str, ...], torch.Tensor] | None = None
    refrozen_features: FeatureTable | None = None

    def inputs_for(self, pictures: torch.Tensor, sided: torch.Tensor | None = None) -> torch.Tensor:
        """Places in the data (B,) -> what the model is given: pixels, maps, or means of maps.

        With `sided` (B,), True where a caption says left or right, a random view of each picture is given.
        """
        if self.uses_pixels():
            seen = self.data.pixels.lookup(pictures)
            return seen if sided is None else random_view(seen, sided, self.data.min_crop_area)
        rows = pictures if sided is None else self.data.random_view_rows(pictures, sided)
        if self.encoder_refrozen():
            self.refrozen_features = self.refrozen_features or encode_all(
                self.module, self.data, self.pooled
            )
            return self.refrozen_features.lookup(rows)
        return (self.data.pooled_features if self.pooled else self.data.feature_maps).lookup(rows)

    def batch_inputs(self, batch: CaptionBatch) -> torch.Tensor:
        """What the model is given of a batch's pictures: in training, random views of them."""
        if not self.module.training or self.data.num_augmentations == 1:
            return self.inputs_for(batch.image_ids)
        sided = self.data.mentions_left_right(batch.tokens)
        if batch.image_index is not None:  # of each picture, if one of its captions does
            sided = (
                torch.zeros(len(batch.image_ids), device=sided.device).index_add_(
                    0, batch.image_index, sided.float()
                )
                > 0
            )
        return self.inputs_for(batch.image_ids, sided)

    def cross_entropy_loss(self, batch: CaptionBatch) -> LossSum:
        """`objective.likelihood` of a batch; on a GPU, in training, played back from a recording of it."""
        pictures, rows = (
            self.batch_inputs(batch),
            () if batch.image_index is None else (batch.image_index,),
        )
        if self.graphed_loss is None or not self.module.training or not pictures.is_cuda:
            return cross_entropy_loss(
                self.module, pictures, batch.tokens, self.method, self.fraction, *rows
            )
        total, *extra = self.graphed_loss(pictures, batch.tokens, *rows)
        return LossSum(total, 0, extra[0] if extra else None)

    def self_critical_loss(self, batch: CaptionBatch) -> LossSum:
        """`objective.self_critical_loss` of a batch, the same way: with tokens of one width, for one recording is large."""
        if self.graphed_loss is not None:
            self.graphed_loss.clear()
        missing = self.data.vocabulary.max_length + 2 - batch.tokens.shape[1]
        tokens = torch.nn.functional.pad(batch.tokens, (0, missing), value=PAD)
        inputs = (
            self.batch_inputs(batch),
            tokens,
            batch.image_ids,
            *(() if batch.image_index is None else (batch.image_index,)),
        )
        total, extra = (
            self.graphed_scst(*inputs)
            if self.graphed_scst is not None and tokens.is_cuda
            else _rewarded(self, *inputs)
        )
        return LossSum(total, 0, extra)

    def code_path(self) -> str:
        """For the ledger."""
        if self.method is None or not self.method.fast:
            return "plain"
        told = [self.module.decoder.fast_path]
        for what, replay in (("", self.graphed_loss), ("self-critical steps ", self.graphed_scst)):
            if replay is not None and (replay.failure_reason or replay.num_captured):
                told.append(what + (replay.failure_reason or "CUDA graphs"))
        return ", ".join(filter(None, told))

    def uses_pixels(self) -> bool:
        """Until its blocks thaw, a fine-tuned encoder sees what the frozen one saw; once they stand still, what it saw then."""
        waiting = (
            self.module.training
            and self.method is not None
            and self.method.fine_tune
            and self.epoch < self.method.fine_tune.from_epoch
        )
        return self.encoder_tuned and not waiting and not self.encoder_refrozen()

    def groups_captions(self) -> bool:
        """Whether an image's captions come in one step of training, so that it is looked at once."""
        own = self.method.captions_per_group if self.method else None
        return (own or self.data.captions_per_group) > 1

    def encoder_refrozen(self) -> bool:
        """Whether a fine-tuned encoder changes no more."""
        tune = self.method.fine_tune if self.method else None
        return bool(tune and tune.until_epoch and self.epoch >= tune.until_epoch)


def make_model(method: CaptionMethod, encoder: Pretrained, words: int) -> ImageCaptioningModel:
    """The whole model of a method's settings; the decoder is freshly initialised from torch's current seed."""
    decoder = decoders.make_decoder(method, words, encoder.module.width, encoder.grid_size**2)
    half = method.fine_tune is not None and method.fine_tune.precision == "bfloat16"
    return ImageCaptioningModel(encoder.module, decoder, method.feature_dropout, half)


def make_trainable(
    recipe: CaptionsRecipe,
    name: str,
    encoder: Pretrained,
    vocabulary: Vocabulary,
    seed: int,
    data: CaptionData | None = None,
) -> TrainableCaptioner:
    """A method of the recipe, ready to be trained, or to be given its weights."""
    method = recipe.methods[name]
    torch.manual_seed(seed)
    model = make_model(method, encoder, len(vocabulary))
    names = {f"decoder.{n}" for n, _ in model.decoder.named_parameters()}
    groups = []
    if method.fine_tune:
        groups = [
            ParameterGroup(
                frozenset(f"encoder.{n}" for n in _thawed(method, encoder)),
                method.fine_tune.learning_rate,
                method.fine_tune.from_epoch,
                method.fine_tune.until_epoch,
            )
        ]
        names |= groups[0].names
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in names)
    pooled, late = model.decoder.input_kind == "pooled", method.self_critical
    trainable = TrainableCaptioner(
        model,
        frozenset(names),
        method.learning_rate,
        groups,
        _phases(method),
        method=method,
        data=data,
        tuned=bool(groups),
        pooled=pooled,
    )
    if method.fast and not method.scheduled_sampling:  # whose share changes with every step
        trainable.graphed_loss = GraphedFunction(partial(_losses, model, method), model, OFTEN)
    if method.fast and late and data is not None:
        trainable.graphed_scst = GraphedFunction(partial(_rewarded, trainable), model, OFTEN)
    return trainable


def _phases(method: CaptionMethod) -> list[TrainingPhase]:
    """Where the encoder stands still again, and where the reward begins: with rates of their own, from the best weights."""
    tune, late, rates = method.fine_tune, method.self_critical, {}
    if tune and tune.until_epoch:
        rates[tune.until_epoch] = tune.decoder_rate
    if late and late.learning_rate:
        rates[late.from_epoch] = late.learning_rate
    return [
        TrainingPhase(epoch, rate / method.learning_rate, from_best=True)
        for epoch, rate in sorted(rates.items())
    ]


def _losses(
    model: ImageCaptioningModel,
    method: CaptionMethod,
    pictures: torch.Tensor,
    tokens: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    found = cross_entropy_loss(model, pictures, tokens, method, 0.0, rows)
    return (found.total,) if found.penalty is None else (found.total, found.penalty)


def _rewarded(
    trainable: TrainableCaptioner,
    pictures: torch.Tensor,
    tokens: torch.Tensor,
    images: torch.Tensor,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    data, late = trainable.data, trainable.method.self_critical
    most = data.vocabulary.max_length
    found = self_critical_loss(
        trainable.module, pictures, tokens, images, data.cider_reward, late, most, rows
    )
    return found.total, found.penalty


def make_ensemble(
    members: list[TrainableCaptioner], data: CaptionData | None, mirrored: bool = False
) -> TrainableCaptioner:
    """Trained members as one that is not trained itself; `mirrored` ones look twice, and then only pixels will do."""
    modules = [member.module for member in members]
    module = Ensemble([*modules, *(HorizontalFlip(one) for one in modules if mirrored)])
    module.requires_grad_(False)
    tuned = mirrored or any(m.encoder_tuned for m in members)
    return TrainableCaptioner(
        module, frozenset(), data=data, tuned=tuned, pooled=all(m.pooled for m in members)
    )


def _thawed(method: CaptionMethod, encoder: Pretrained) -> frozenset[str]:
    try:
        return encoder.module.last_blocks(method.fine_tune.blocks)
    except ValueError as error:
        raise UserError(str(error), location="fine_tune.blocks", hint="fewer blocks") from None
