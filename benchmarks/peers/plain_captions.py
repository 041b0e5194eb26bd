"""Captioning as tutorials write it: what `benchmarks.captions` measures tarazu's fast paths against.

One `DataLoader` that decodes pictures, an encoder in float32; the decoder's plain path, with every caption padded to the
longest there is, logits for padding too, and one wait for the device a step; beam search one picture at a time.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tarazu.captions.data.vocabulary import EOS, PAD, SOS, UNK


class Pictures(Dataset):
    """Pictures from the bytes of their files (workers that share an open zip would read each other's), decoded and resized:
    (S, S, 3) uint8."""

    def __init__(self, files: list[bytes], size: int, resample: Any):
        self.files, self.size, self.resample = files, size, resample

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> Tensor:
        import io

        import numpy as np
        from PIL import Image

        picture = Image.open(io.BytesIO(self.files[place])).convert("RGB")
        return torch.from_numpy(np.array(picture.resize((self.size, self.size), self.resample)))


def features(encoder: nn.Module, pictures: Pictures, device: torch.device) -> Tensor:
    """(N, P, D) float32, on the CPU."""
    workers = min(16, os.cpu_count() or 1)
    loader = DataLoader(
        pictures,
        128,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",
    )
    with torch.no_grad():
        return torch.cat([encoder(batch.to(device)).cpu() for batch in loader])


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pictures: Tensor,
    tokens: Tensor,
    clip: float,
) -> float:
    """One step on (B, ...) pictures or features and (B, T) tokens; returns the mean loss per word."""
    optimizer.zero_grad()
    logits = model(pictures, tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def beam_search(model: nn.Module, features: Tensor, beams: int, max_words: int) -> list[int]:
    """The best caption of one picture (1, P, D), scored by the mean log-probability of its words and its end."""
    state = tuple(part.repeat_interleave(beams, 0) for part in model.start(features))
    alive, ended = [(0.0, [SOS])], []
    for place in range(max_words + 1):
        last = torch.tensor([words[-1] for _, words in alive], device=features.device)
        logits, state, _ = model.step(tuple(part[: len(alive)] for part in state), last)
        logp = torch.log_softmax(logits.float(), 1)
        logp[:, [PAD, SOS, UNK] + ([EOS] if place == 0 else [])] = float("-inf")
        if place == max_words:
            logp[:, :EOS] = logp[:, EOS + 1 :] = float("-inf")
        totals = logp + torch.tensor([score for score, _ in alive], device=logp.device)[:, None]
        scores, picks = totals.flatten().topk(2 * beams)
        grown, parents = [], []
        for rank, (score, pick) in enumerate(zip(scores.tolist(), picks.tolist(), strict=True)):
            parent, word = divmod(pick, logp.shape[1])
            if word == EOS:
                if rank < beams and score > float("-inf"):
                    ended.append((score / (place + 1), alive[parent][1][1:]))
            elif len(grown) < beams:
                grown.append((score, [*alive[parent][1], word]))
                parents.append(parent)
        alive, state = grown, tuple(part[parents] for part in state)
        if len(ended) >= beams or not alive:
            break
    return max(ended)[1]
