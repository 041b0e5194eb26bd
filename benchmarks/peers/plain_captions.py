"""Captioning as tutorials write it: the peer of `benchmarks.captions`.

A `DataLoader` decodes the images, and the encoder runs in float32. The decoder takes its plain
path, with every caption padded to the longest of the data, logits for padding too, and one wait for
the device a step. Beam search takes one image at a time.
"""

from __future__ import annotations

import io
import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tarazu.captions.data.vocabulary import EOS, PAD, SOS, UNK


class ImageFiles(Dataset):
    """Decoded and resized images, (S, S, 3) uint8.

    Args:
        files: the bytes of each file. Workers that share an open zip file would disturb each other.
        size: S.
        resample: Pillow's method of resizing.
    """

    def __init__(self, files: list[bytes], size: int, resample: Image.Resampling):
        self.files, self.size, self.resample = files, size, resample

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        image = Image.open(io.BytesIO(self.files[index])).convert("RGB")
        return torch.from_numpy(np.array(image.resize((self.size, self.size), self.resample)))


def features(encoder: nn.Module, images: ImageFiles, device: torch.device) -> Tensor:
    """Features (N, P, D) of N images in float32, on the CPU."""
    loader = DataLoader(
        images,
        128,
        num_workers=min(16, os.cpu_count() or 1),
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",
    )
    with torch.no_grad():
        return torch.cat([encoder(batch.to(device)).cpu() for batch in loader])


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    tokens: Tensor,
    max_grad_norm: float,
) -> float:
    """One optimizer step.

    Args:
        model: the captioning model.
        optimizer: of its trained parameters.
        images: pixels (B, S, S, 3) or features (B, P, D).
        tokens: (B, T).
        max_grad_norm: norm to which gradients are clipped.

    Returns:
        Mean loss of a token.
    """
    optimizer.zero_grad()
    logits = model(images, tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD)
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def beam_search(model: nn.Module, features: Tensor, beams: int, max_length: int) -> list[int]:
    """The best caption of one image.

    Args:
        model: the captioning model, in eval mode.
        features: (1, P, D).
        beams: width of the search.
        max_length: maximum number of words.

    Returns:
        The token ids with the highest mean log-probability, without start and end token.
    """
    state = tuple(part.repeat_interleave(beams, 0) for part in model.start(features))
    live, finished = [(0.0, [SOS])], []  # (summed log-probability, token ids)
    for step in range(max_length + 1):
        last = torch.tensor([ids[-1] for _, ids in live], device=features.device)
        logits, state, _ = model.step(tuple(part[: len(live)] for part in state), last)
        logp = torch.log_softmax(logits.float(), 1)
        # A caption has at least one word, and ends after `max_length`.
        logp[:, [PAD, SOS, UNK] + ([EOS] if step == 0 else [])] = float("-inf")
        if step == max_length:
            logp[:, :EOS] = logp[:, EOS + 1 :] = float("-inf")
        totals = logp + torch.tensor([score for score, _ in live], device=logp.device)[:, None]
        # Twice as many candidates as beams, because those that end leave the beam.
        scores, candidates = totals.flatten().topk(2 * beams)
        extended, parents = [], []
        ranked = zip(scores.tolist(), candidates.tolist(), strict=True)
        for rank, (score, candidate) in enumerate(ranked):
            parent, token = divmod(candidate, logp.shape[1])
            if token == EOS:
                if rank < beams and score > float("-inf"):
                    finished.append((score / (step + 1), live[parent][1][1:]))
            elif len(extended) < beams:
                extended.append((score, [*live[parent][1], token]))
                parents.append(parent)
        live, state = extended, tuple(part[parents] for part in state)
        if len(finished) >= beams or not live:
            break
    return max(finished)[1]
