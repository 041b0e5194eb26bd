"""The training losses of a captioning model: cross-entropy and self-critical training.

Cross-entropy can be regularised by label smoothing, word dropout, scheduled sampling and the doubly
stochastic penalty. Self-critical training maximises the CIDEr of the model's own captions. Both
report the plain cross-entropy of the reference captions as the loss.

Shapes: B captions, B_img images (fewer than B where captions share an image), T input tokens of a
caption (its tokens without the last), P positions of an image's features, V vocabulary size.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from tarazu.captions.data.vocabulary import EOS, PAD, SOS, UNK
from tarazu.captions.decoding.constraints import FORBIDDEN_TOKENS, forbidden_tokens
from tarazu.captions.decoding.sampling import sample
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.settings import CaptionMethod, SelfCritical
from tarazu.captions.training.cider_reward import CiderReward
from tarazu.engine.dropout import without_dropout
from tarazu.engine.trainable import LossSum


def cross_entropy_loss(
    model: ImageCaptioningModel,
    images: Tensor,
    tokens: Tensor,
    method: CaptionMethod,
    fraction: float,
    image_index: Tensor | None = None,
) -> LossSum:
    """Return the cross-entropy of each token given those before it, summed without padding.

    Args:
        model: in training mode its regularisers apply.
        images: pixels (B_img, S, S, 3) or features (B_img, P, D).
        tokens: (B, T + 1): `<sos>`, words, `<eos>`, `<pad>`.
        method: the method's settings.
        fraction: part of the training budget that is used up, 0..1. The probability of scheduled
            sampling is `method.scheduled_sampling` times this.
        image_index: (B,), the image of each caption, where captions share one.

    Returns:
        The loss, in training mode with the penalty of the regularisers. The count is a placeholder,
        0, which `captions/trainable.py` replaces by the number of supervised tokens.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if model.training:
        inputs = _corrupt_inputs(model, images, inputs, method, fraction, image_index)
    logits, alphas, labels = _logits_and_labels(model, images, inputs, targets, image_index)
    total = F.cross_entropy(logits, labels, ignore_index=PAD, reduction="sum")
    penalty = None
    if model.training:
        penalty = _penalty(logits, alphas, targets, labels, method, total)
    return LossSum(total, 0, penalty)


def _logits_and_labels(
    model: ImageCaptioningModel,
    images: Tensor,
    inputs: Tensor,
    targets: Tensor,
    image_index: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The teacher-forced logits and the tokens that they should predict.

    A CPU leaves out the positions whose target is padding. A GPU computes their logits too, because
    the host would have to wait for the GPU to learn where they are.

    Returns:
        Logits (n, V) in float32; attention weights (B, T, P) of a decoder that computes them in any
        case, else None; labels (n,).
    """
    positions = None
    if not targets.is_cuda:
        positions = (targets != PAD).flatten().nonzero().squeeze(1)
    logits, alphas = model.forward_teacher_forced(
        images, inputs, need_weights=False, positions=positions, image_index=image_index
    )
    if positions is None:
        return logits.flatten(0, 1).float(), alphas, targets.flatten()
    return logits.float(), alphas, targets.flatten()[positions]


def _penalty(
    logits: Tensor,
    alphas: Tensor | None,
    targets: Tensor,
    labels: Tensor,
    method: CaptionMethod,
    total: Tensor,
) -> Tensor | None:
    """The regularisers' terms, which are added to the cross-entropy in training.

    Args:
        logits: (n, V).
        alphas: attention weights (B, T, P), or None if the decoder gives none.
        targets: (B, T).
        labels: the tokens that the logits should predict, (n,).
        method: the method's settings.
        total: the summed cross-entropy.

    Returns:
        The summed terms, scalar; None if no regulariser of the loss is set.
    """
    penalty = None
    if method.label_smoothing:
        # smoothed = (1 - s) nll + s uniform = nll + s (uniform - nll), where `uniform` is the
        # cross-entropy to a uniform distribution, and the nll is `total`.
        uniform = -(torch.log_softmax(logits, 1).mean(1) * (labels != PAD)).sum()
        penalty = method.label_smoothing * (uniform - total)
    weight = getattr(method, "doubly_stochastic", 0.0)
    if weight and alphas is not None:
        # Over a caption, the weights of every position should sum to about 1: Xu et al. 2015,
        # arXiv:1502.03044, eq. 14.
        visited = (alphas.float() * (targets != PAD).unsqueeze(2)).sum(1)  # (B, P)
        stochastic = weight * (1 - visited).square().sum()
        penalty = stochastic if penalty is None else penalty + stochastic
    return penalty


def _corrupt_inputs(
    model: ImageCaptioningModel,
    images: Tensor,
    inputs: Tensor,
    method: CaptionMethod,
    fraction: float,
    image_index: Tensor | None = None,
) -> Tensor:
    """Replace some input tokens (B, T): by samples of the model, and by `<unk>` (word dropout).

    Scheduled sampling draws the samples of all positions from one extra teacher-forced pass, as for
    Transformers (Mihaylova and Martins 2019, arXiv:1906.07651), instead of token by token.
    """
    protected = (inputs == SOS) | (inputs == PAD)
    sampled_fraction = method.scheduled_sampling * min(1.0, fraction)
    if sampled_fraction > 0:
        with torch.no_grad():
            logits = model.forward_teacher_forced(
                images, inputs, need_weights=False, image_index=image_index
            )[0].float()
            for token in FORBIDDEN_TOKENS:
                logits[:, :, token] = float("-inf")
            # The logits at position t predict the token at t + 1: sample t may replace input t + 1.
            samples = torch.distributions.Categorical(logits=logits[:, :-1]).sample()
        replace = torch.rand(inputs.shape, device=inputs.device) < sampled_fraction
        replace &= ~protected
        replace[:, 1:] &= samples != EOS  # an `<eos>` in the input has no next token to predict
        inputs = torch.where(replace, torch.cat([inputs[:, :1], samples], 1), inputs)
    if method.word_dropout:
        dropped = torch.rand(inputs.shape, device=inputs.device) < method.word_dropout
        inputs = inputs.masked_fill(dropped & ~protected, UNK)
    return inputs


def self_critical_loss(
    model: ImageCaptioningModel,
    images: Tensor,
    tokens: Tensor,
    image_ids: Tensor,
    reward: CiderReward,
    settings: SelfCritical,
    max_words: int,
    image_index: Tensor | None = None,
) -> LossSum:
    """Return a loss whose gradient estimates that of the negative expected reward.

    The estimate is that of Rennie et al. 2017, arXiv:1612.00563. The baseline of a sampled caption
    is the mean reward of the image's other samples (Luo 2020, arXiv:2003.09971). Captions are
    sampled without dropout. Their log-probabilities, whose gradient is taken, are computed with
    dropout only if `settings.dropout` is set.

    Args:
        model: the model, in training mode.
        images: pixels (B_img, S, S, 3) or features (B_img, P, D).
        tokens: reference captions, (B, T + 1).
        image_ids: (B_img,), each image's index among the reward's references.
        reward: the reward.
        settings: the settings.
        max_words: words of the longest sampled caption.
        image_index: (B,), the image of each reference caption, where captions share one.

    Returns:
        Total and penalty, with a placeholder count of 0. The total is the plain cross-entropy of
        the reference captions, for reporting. Training minimises total + penalty, which is
        policy loss + `settings.likelihood` * total.
    """
    num_used, num_samples = max(1, round(settings.sample_fraction * len(images))), settings.samples
    with without_dropout(model):
        # Encode each image once where several passes below can share its features: all images if
        # the cross-entropy has gradients or if dropout follows, else only those to sample from.
        if settings.likelihood or settings.dropout:
            images = model.encode_images(images)
        features = model.encode_images(images[:num_used]).repeat_interleave(num_samples, 0)
        samples = sample(model, features.detach(), max_words)  # (n, <= max_words + 2)
        sample_ids = image_ids[:num_used].repeat_interleave(num_samples)
        advantage = _advantage(reward(sample_ids, samples, settings.bleu), num_samples)
    with nullcontext() if settings.dropout else without_dropout(model):
        logits = model.forward_teacher_forced(features, samples[:, :-1], need_weights=False)[0]
        log_probs = _sample_log_probs(logits.float(), samples[:, 1:], max_words)
        # Scale from the used images to all captions of the batch, because the engine divides the
        # sum by the tokens of all captions.
        scale = len(tokens) / num_used
        policy = -(advantage * log_probs).sum() / num_samples * scale
        with torch.set_grad_enabled(settings.likelihood > 0):
            reference_logits, _, labels = _logits_and_labels(
                model, images, tokens[:, :-1], tokens[:, 1:], image_index
            )
            total = F.cross_entropy(reference_logits, labels, ignore_index=PAD, reduction="sum")
    return LossSum(total, 0, policy + (settings.likelihood - 1) * total)


def _sample_log_probs(logits: Tensor, samples: Tensor, max_words: int) -> Tensor:
    """Log-probabilities of sampled tokens under the distribution that they were drawn from.

    Forbidden tokens have probability 0, as in sampling. At the maximum length `<eos>` is then
    certain and has no gradient. Without this, a negative advantage would lower the logit of `<eos>`
    there without limit, until no caption ends.

    Args:
        logits: (n, T, V).
        samples: (n, T).
        max_words: words of the longest sampled caption.

    Returns:
        (n, T), 0 on padding.
    """
    steps, vocab_size = logits.shape[1:]
    forbidden = forbidden_tokens(0, steps, vocab_size, max_words, logits.device)
    logits = logits.masked_fill(forbidden, float("-inf"))
    losses = F.cross_entropy(
        logits.flatten(0, 1), samples.flatten(), ignore_index=PAD, reduction="none"
    )
    return -losses.view(len(samples), -1)


def _advantage(rewards: Tensor, num_samples: int) -> Tensor:
    """Each sample's reward minus the mean reward of the image's other samples.

    Args:
        rewards: (images * num_samples,), the samples of an image next to each other.
        num_samples: samples of an image, at least 2.

    Returns:
        (images * num_samples, 1).
    """
    rewards = rewards.view(-1, num_samples)
    others = (rewards.sum(1, keepdim=True) - rewards) / (num_samples - 1)
    return (rewards - others).view(-1, 1)
