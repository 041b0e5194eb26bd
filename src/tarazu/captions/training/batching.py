"""Batches of (image, caption) rows, padded with `<pad>`, which the loss ignores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tarazu.captions.data.vocabulary import PAD
from tarazu.captions.dataset import CaptionData
from tarazu.engine.counts import TokenCounts

WIDTH_MULTIPLE = 4  # of the inputs on a GPU: few widths, so that few shapes are captured


@dataclass
class CaptionBatch:
    """Captions with their images.

    Args:
        tokens: (B, T + 1), `<sos>` to the end of the longest caption, then `<pad>`.
        image_ids: indices into `CaptionData.all_names`, (B,), or fewer if captions share an image.
        counts: of the batch, for the ledger.
        image_index: (B,), the position in `image_ids` of each caption's image; None where
            `image_ids` has one entry for each caption.
    """

    tokens: Tensor
    image_ids: Tensor
    counts: TokenCounts
    image_index: Tensor | None = None

    def to(self, device: torch.device) -> CaptionBatch:
        """Return the batch on a device."""
        tokens = self.tokens.to(device, non_blocking=True)
        image_ids = self.image_ids.to(device, non_blocking=True)
        image_index = self.image_index
        if image_index is not None:
            image_index = image_index.to(device, non_blocking=True)
        return CaptionBatch(tokens, image_ids, self.counts, image_index)


def make_batches(
    data: CaptionData, split: str, row_list: list[int], limit: int, group_captions: bool
) -> list[CaptionBatch]:
    """Split rows into batches.

    Args:
        data: the prepared data.
        split: the rows' split.
        row_list: the rows.
        limit: maximum of tokens in a batch, with padding; a longer row has a batch of its own.
        group_captions: in training, encode an image once for all of its captions. Evaluation does
            so whenever the data keeps an image's captions together.
    """
    all_tokens, all_image_ids = data.tokens[split], data.image_indices[split]
    rows = np.asarray(row_list)
    lengths = (all_tokens[rows] != PAD).sum(1)
    grouped_evaluation = split != "train" and data.captions_per_group > 1
    # Rows of similar length need the least padding. Grouped rows keep their order, which keeps an
    # image's captions together.
    if len(rows) * lengths.max() > limit and not grouped_evaluation:
        order = np.argsort(-lengths, kind="stable")
        rows, lengths = rows[order], lengths[order]
    batches, start = [], 0
    while start < len(rows):
        end = start + max(1, limit // int(lengths[start:].max()))
        batch_rows, batch_lengths = rows[start:end], lengths[start:end]
        width = int(batch_lengths.max())
        if data.device.type == "cuda":
            width = min(_round_up(width - 1, WIDTH_MULTIPLE) + 1, all_tokens.shape[1])
        real_tokens = int((batch_lengths - 1).sum())
        padding = len(batch_rows) * (width - 1) - real_tokens
        counts = TokenCounts(len(batch_rows), real_tokens, real_tokens, padding)
        tokens = torch.from_numpy(all_tokens[batch_rows, :width])
        image_ids, image_index = all_image_ids[batch_rows], None
        if grouped_evaluation or (group_captions and len(batch_rows) == len(rows)):
            image_ids, index = _unique_in_order(image_ids)
            image_index = torch.from_numpy(index)
        batches.append(CaptionBatch(tokens, torch.from_numpy(image_ids), counts, image_index))
        start = end
    return batches


def _round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below the number."""
    return -(-number // multiple) * multiple


def _unique_in_order(image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids, in order of first occurrence, and each row's position among them.

    The order matters: self-critical training samples for the first images of a step, which must
    not be the first of the data set.
    """
    distinct, first, inverse = np.unique(image_ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return distinct[order], np.argsort(order)[inverse]
