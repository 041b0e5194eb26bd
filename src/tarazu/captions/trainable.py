"""A captioning method in training: its model, its settings and the inputs of its images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tarazu.captions.data.augmentation import random_view
from tarazu.captions.data.vocabulary import PAD
from tarazu.captions.dataset import CaptionData
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.model.refrozen_features import FeatureTable, encode_all
from tarazu.captions.settings import CaptionMethod
from tarazu.captions.training.batching import CaptionBatch
from tarazu.captions.training.objective import cross_entropy_loss, self_critical_loss
from tarazu.engine.cuda_graphs.recorder import GraphedFunction
from tarazu.engine.trainable import LossSum, TrainableModel


@dataclass
class TrainableCaptioner(TrainableModel):
    """A captioning model with what it needs to be trained and evaluated.

    Args:
        method: the method's settings; None for an ensemble, which is not trained.
        data: the prepared data; None for a model that is only used.
        encoder_tuned: whether the encoder may differ from the pretrained one, so that cached
            features of the frozen encoder do not apply.
        pooled: whether the decoder uses only the mean over the positions.
        graphed_loss: CUDA graphs of the cross-entropy.
        graphed_scst: CUDA graphs of the self-critical loss. Only one of the two holds graphs at a
            time, because each has its own buffer for every gradient.
        encoded_images: encoder outputs by image names while weights do not change (in the final
            evaluation), else None.
        refrozen_features: features of all images from a fine-tuned encoder that is frozen again;
            made when first needed.
    """

    method: CaptionMethod | None = None
    data: CaptionData | None = None
    encoder_tuned: bool = False
    pooled: bool = False
    graphed_loss: GraphedFunction | None = None
    graphed_scst: GraphedFunction | None = None
    encoded_images: dict[tuple[str, ...], Tensor] | None = None
    refrozen_features: FeatureTable | None = None

    def inputs_for(self, image_ids: Tensor, keep_sides: Tensor | None = None) -> Tensor:
        """Return the model's input for some images.

        Args:
            image_ids: (B,), indices into `CaptionData.all_names`.
            keep_sides: (B,) bool; if given, a random view of each image is used, not mirrored where
                True.

        Returns:
            Pixels (B, S, S, 3), feature maps (B, P, D) or pooled features (B, 1, D).
        """
        if self.uses_pixels():
            pixels = self.data.pixels.lookup(image_ids)
            if keep_sides is None:
                return pixels
            return random_view(pixels, keep_sides, self.data.min_crop_area)
        rows = image_ids
        if keep_sides is not None:
            rows = self.data.random_view_rows(image_ids, keep_sides)
        if self.encoder_refrozen():
            if self.refrozen_features is None:
                self.refrozen_features = encode_all(self.module, self.data, self.pooled)
            return self.refrozen_features.lookup(rows)
        return (self.data.pooled_features if self.pooled else self.data.feature_maps).lookup(rows)

    def batch_inputs(self, batch: CaptionBatch) -> Tensor:
        """Return the model's input for a batch's images; in training, random views of them.

        Returns:
            As `inputs_for`: pixels (B, S, S, 3), feature maps (B, P, D) or pooled (B, 1, D).
        """
        if not self.module.training or self.data.num_augmentations == 1:
            return self.inputs_for(batch.image_ids)
        keep_sides = self.data.mentions_left_right(batch.tokens)  # (B,)
        if (
            batch.image_index is not None
        ):  # an image keeps its sides if any of its captions needs it
            mentions = torch.zeros(len(batch.image_ids), device=keep_sides.device)
            keep_sides = mentions.index_add_(0, batch.image_index, keep_sides.float()) > 0
        return self.inputs_for(batch.image_ids, keep_sides)

    def loss(self, batch: CaptionBatch) -> LossSum:
        """Return the summed loss of a batch, in the module's current mode.

        In training, epochs from `self_critical.from_epoch` on use the self-critical loss.
        """
        scst = self.method.self_critical if self.method and self.module.training else None
        use_scst = scst is not None and self.epoch >= scst.from_epoch
        loss = self._self_critical_loss(batch) if use_scst else self._cross_entropy_loss(batch)
        return LossSum(loss.total, batch.counts.supervised, loss.penalty)

    def _cross_entropy_loss(self, batch: CaptionBatch) -> LossSum:
        """`objective.cross_entropy_loss`; on a GPU in training, replayed from a CUDA graph."""
        images = self.batch_inputs(batch)
        image_index = () if batch.image_index is None else (batch.image_index,)
        if self.graphed_loss is None or not self.module.training or not images.is_cuda:
            return cross_entropy_loss(
                self.module, images, batch.tokens, self.method, self.fraction, *image_index
            )
        total, *penalty = self.graphed_loss(images, batch.tokens, *image_index)
        return LossSum(total, 0, penalty[0] if penalty else None)

    def _self_critical_loss(self, batch: CaptionBatch) -> LossSum:
        """`objective.self_critical_loss`; on a GPU replayed from a CUDA graph."""
        if self.graphed_loss is not None:
            self.graphed_loss.clear()  # frees its gradient buffers
        # Tokens of one width: a graph of this loss is large, so there should be only one.
        missing = self.data.vocabulary.max_length + 2 - batch.tokens.shape[1]
        tokens = F.pad(batch.tokens, (0, missing), value=PAD)
        inputs = [self.batch_inputs(batch), tokens, batch.image_ids]
        if batch.image_index is not None:
            inputs.append(batch.image_index)
        if self.graphed_scst is not None and tokens.is_cuda:
            total, penalty = self.graphed_scst(*inputs)
        else:
            total, penalty = self_critical_tensors(self, *inputs)
        return LossSum(total, 0, penalty)

    def uses_pixels(self) -> bool:
        """Return whether the model's input is pixels: while the encoder may change.

        Before `fine_tune.from_epoch` it equals the frozen encoder, whose features are cached. Once
        it is frozen again, `refrozen_features` has its features.
        """
        not_yet_tuned = (
            self.module.training
            and self.method is not None
            and self.method.fine_tune
            and self.epoch < self.method.fine_tune.from_epoch
        )
        return self.encoder_tuned and not not_yet_tuned and not self.encoder_refrozen()

    def encoder_refrozen(self) -> bool:
        """Return whether a fine-tuned encoder is frozen again."""
        fine_tune = self.method.fine_tune if self.method else None
        return bool(fine_tune and fine_tune.until_epoch and self.epoch >= fine_tune.until_epoch)

    def groups_captions(self) -> bool:
        """Return whether a training step encodes an image once for all of its captions."""
        own = self.method.captions_per_group if self.method else None
        return (own or self.data.captions_per_group) > 1

    def code_path(self) -> str:
        """Describe which implementation of teacher forcing ran, for the ledger."""
        if self.method is None or not self.method.fast:
            return "plain"
        parts = [self.module.decoder.fast_path]
        for name, graphed in (("", self.graphed_loss), ("self-critical steps ", self.graphed_scst)):
            if graphed is not None and graphed.failure_reason:
                parts.append(name + graphed.failure_reason)
            elif graphed is not None and graphed.num_captured:
                parts.append(name + ("as CUDA graphs" if name else "CUDA graphs"))
        return ", ".join(filter(None, parts))


def cross_entropy_tensors(
    model: ImageCaptioningModel,
    method: CaptionMethod,
    images: Tensor,
    tokens: Tensor,
    image_index: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return loss and penalty (if any) as scalar tensors, which a CUDA graph needs.

    The arguments are those of `cross_entropy_loss`.
    """
    loss = cross_entropy_loss(model, images, tokens, method, 0.0, image_index)
    return (loss.total,) if loss.penalty is None else (loss.total, loss.penalty)


def self_critical_tensors(
    trainable: TrainableCaptioner,
    images: Tensor,
    tokens: Tensor,
    image_ids: Tensor,
    image_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return loss and penalty as scalar tensors, which a CUDA graph needs.

    The arguments are those of `self_critical_loss`.
    """
    data = trainable.data
    loss = self_critical_loss(
        trainable.module,
        images,
        tokens,
        image_ids,
        data.cider_reward,
        trainable.method.self_critical,
        data.vocabulary.max_length,
        image_index,
    )
    return loss.total, loss.penalty
