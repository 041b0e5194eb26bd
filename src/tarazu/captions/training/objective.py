"""What a decoder is trained on: a person's next word, and what keeps it from learning the captions by heart.

Label smoothing, hidden words, scheduled sampling and the doubly stochastic penalty are options, and so are late epochs
on the CIDEr of the model's own sentences. The loss that is reported stays the plain likelihood throughout.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from tarazu.captions.data.vocabulary import EOS, PAD, SOS, UNK
from tarazu.captions.decoding import beam_search
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.settings import CaptionMethod, SelfCritical
from tarazu.captions.training.cider_reward import CiderReward
from tarazu.engine.dropout import without_dropout
from tarazu.engine.trainable import LossSum


def cross_entropy_loss(
    model: ImageCaptioningModel,
    pictures: Tensor,
    tokens: Tensor,
    method: CaptionMethod,
    fraction: float,
    rows: Tensor | None = None,
) -> LossSum:
    """tokens (B, T + 1), `<sos>` words `<eos>` `<pad>`: every word given those before it; padding counts for nothing.

    fraction: share of the budget used, 0..1; scheduled sampling grows with it. rows (B,): the picture of each row of tokens,
    where several share one.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if model.training:
        inputs = _corrupt_inputs(model, pictures, inputs, method, fraction, rows)
    logits, alphas, wanted = _taught(model, pictures, inputs, targets, rows)
    total = F.cross_entropy(logits, wanted, ignore_index=PAD, reduction="sum")
    extra = _extras(logits, alphas, targets, wanted, method, total) if model.training else None
    return LossSum(total, 0, extra)


def _taught(
    model: ImageCaptioningModel,
    pictures: Tensor,
    inputs: Tensor,
    targets: Tensor,
    rows: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Logits (n, V) in float32, attention if it costs nothing, and the words (n,) that they should give.

    On a CPU only of real words. A GPU does the padding as well: to find the words, the program would wait for it.
    """
    at = None if targets.is_cuda else (targets != PAD).flatten().nonzero().squeeze(1)
    logits, alphas = model.forward_teacher_forced(pictures, inputs, False, at, rows)
    if at is None:
        return logits.flatten(0, 1).float(), alphas, targets.flatten()
    return logits.float(), alphas, targets.flatten()[at]


def _extras(
    logits: Tensor,
    alphas: Tensor | None,
    targets: Tensor,
    wanted: Tensor,
    method: CaptionMethod,
    total: Tensor,
) -> Tensor | None:
    """What is trained on besides the likelihood: logits (n, V) that should give `wanted` (n,); targets (B, T)."""
    extra = None
    if (
        method.label_smoothing
    ):  # (1 - s) nll + s * mean over words; `total` already has the nll once
        uniform = -(torch.log_softmax(logits, 1).mean(1) * (wanted != PAD)).sum()
        extra = method.label_smoothing * (uniform - total)
    weight = getattr(method, "doubly_stochastic", 0.0)
    if weight and alphas is not None:  # every place should be looked at once in all
        looked = (alphas.float() * (targets != PAD).unsqueeze(2)).sum(1)
        penalty = weight * (1 - looked).square().sum()
        extra = penalty if extra is None else extra + penalty
    return extra


def _corrupt_inputs(
    model: ImageCaptioningModel,
    pictures: Tensor,
    inputs: Tensor,
    method: CaptionMethod,
    fraction: float,
    rows: Tensor | None = None,
) -> Tensor:
    """Some input words replaced by the model's own (scheduled sampling) or hidden (word dropout)."""
    keep = (inputs == SOS) | (inputs == PAD)
    share = method.scheduled_sampling * min(1.0, fraction)
    if share > 0:
        with (
            torch.no_grad()
        ):  # two passes instead of one word at a time (Mihaylova and Martins 2019)
            own = model.forward_teacher_forced(pictures, inputs, attention=False, rows=rows)[
                0
            ].float()
            for word in beam_search.FORBIDDEN_TOKENS:
                own[:, :, word] = float("-inf")
            drawn = torch.distributions.Categorical(logits=own[:, :-1]).sample()
        chosen = (torch.rand(inputs.shape, device=inputs.device) < share) & ~keep
        chosen[:, 1:] &= drawn != EOS  # a sentence that has ended could not go on
        inputs = torch.where(chosen, torch.cat([inputs[:, :1], drawn], 1), inputs)
    if method.word_dropout:
        hidden = torch.rand(inputs.shape, device=inputs.device) < method.word_dropout
        inputs = inputs.masked_fill(hidden & ~keep, UNK)
    return inputs


def self_critical_loss(
    model: ImageCaptioningModel,
    pictures: Tensor,
    tokens: Tensor,
    images: Tensor,
    rewards: CiderReward,
    settings: SelfCritical,
    max_words: int,
    rows: Tensor | None = None,
) -> LossSum:
    """The gradient of the expected reward: each sampled sentence against the mean of the image's other samples.

    images (B,): the place of each picture among the references. Sentences are drawn without dropout; it may be on in what is
    learnt from them (`settings.dropout`). The loss that is reported stays the likelihood of the person's caption.
    """
    used, samples = max(1, round(settings.sample_fraction * len(pictures))), settings.samples
    with without_dropout(model):
        if settings.likelihood or settings.dropout:  # then all are looked at once, for everything
            pictures = model.encode_images(pictures)
        features = model.encode_images(pictures[:used]).repeat_interleave(
            samples, 0
        )  # once for all samples
        drawn = beam_search.sample(model, features.detach(), max_words)
        advantage = _advantage(
            rewards(images[:used].repeat_interleave(samples), drawn, settings.bleu), samples
        )
    with nullcontext() if settings.dropout else without_dropout(model):
        logits = model.forward_teacher_forced(features, drawn[:, :-1], attention=False)[0].float()
        logp = _log_chances(logits, drawn[:, 1:], max_words)
        policy = (
            -(advantage * logp).sum() / samples * (len(tokens) / used)
        )  # rows, not pictures, that may have several: as `total`
        with torch.set_grad_enabled(settings.likelihood > 0):
            plain, _, wanted = _taught(model, pictures, tokens[:, :-1], tokens[:, 1:], rows)
            total = F.cross_entropy(plain, wanted, ignore_index=PAD, reduction="sum")
    return LossSum(total, 0, policy + (settings.likelihood - 1) * total)


def _log_chances(logits: Tensor, said: Tensor, max_words: int) -> Tensor:
    """logits (B, T, V), said (B, T) -> log-probabilities (B, T) of the words as `decoding.sample` drew them, 0 on padding.

    Over what could be drawn only: else an end that was forced upon a sentence of full length, and made it worse than others,
    would be pushed down without limit, until no sentence ends any more.
    """
    count, vocabulary = logits.shape[1:]
    logits = logits.masked_fill(
        beam_search.forbidden_tokens(0, count, vocabulary, max_words, logits.device), float("-inf")
    )
    return -F.cross_entropy(
        logits.flatten(0, 1), said.flatten(), ignore_index=PAD, reduction="none"
    ).view(len(said), -1)


def _advantage(found: Tensor, samples: int) -> Tensor:
    """Rewards (B * samples,) -> how much better each sentence is than the mean of its image's others, (B * samples, 1)."""
    found = found.view(-1, samples)
    others = (found.sum(1, keepdim=True) - found) / (samples - 1)
    return (found - others).view(-1, 1)
