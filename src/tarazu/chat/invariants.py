"""Invariants of a chat model: how rows share a batch must not change what the model computes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tarazu.chat.evaluation.generation import generate, left_pad, next_position, prefill
from tarazu.chat.model.batching import TokenizedRow
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.loss import logits_of
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.prepared_data import ChatData
from tarazu.chat.row_losses import losses, make_batches, tokenized_rows
from tarazu.engine.invariants.fixture import (
    CheckFixture,
    CheckResult,
    TaskInvariants,
    compare_to_tolerance,
    max_abs_difference,
    not_applicable,
)
from tarazu.engine.invariants.perturbations import embeddings_perturbed

ANSWER_TOKENS = 8
PROMPTS = 3
TokenLosses = dict[
    int, torch.Tensor
]  # cross-entropy of each supervised token in nats, (N,), by row


class ChatInvariants(TaskInvariants):
    """Packed, padded, left-padded and cached computations equal each row's own."""

    def subset_rows(self, data: ChatData, count: int) -> list[int]:
        """Rows of different lengths from the shorter third of the first 64 training rows."""
        lengths = data.store.lengths("train")[:64]
        order = np.argsort(lengths, kind="stable")[: max(count, len(lengths) // 3)]
        positions = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
        return [int(order[position]) for position in positions]

    def checks(self, fixture: CheckFixture) -> Iterator[CheckResult]:
        yield from checks(fixture)


@torch.no_grad()
def checks(fixture: CheckFixture) -> Iterator[CheckResult]:
    """Check the forward pass and the generation of one method, in the recipe's precision."""
    model, data = fixture.model, fixture.data
    rows = tokenized_rows(data, "train", fixture.rows)
    limit = fixture.recipe.budget.micro_batch_tokens
    alone = losses_by_row(model, rows, limit=1, packed=False)
    with embeddings_perturbed(model.module, fixture.unit):
        perturbed = losses_by_row(model, rows, limit=1, packed=False)
    tolerance, reason = fixture.allowed(max_abs_difference(alone, perturbed))
    count = sum(map(len, alone.values()))
    for name, packed in (("padded = alone", False), ("packed = alone", True)):
        together = losses_by_row(model, rows, limit, packed)
        layout = "packed into as few lines as fit" if packed else "padded side by side"
        yield compare_to_tolerance(
            name,
            f"loss in nats of {count} answer tokens of {len(rows)} rows, {layout}, "
            "and each row alone",
            max_abs_difference(alone, together),
            tolerance,
            reason,
        )
    yield future_check(fixture, rows, tolerance, reason)
    yield from generation_checks(fixture, rows, tolerance, reason)


def losses_by_row(
    model: TrainableChatModel, rows: list[TokenizedRow], limit: int, packed: bool
) -> TokenLosses:
    """Loss of every supervised token, in the row's order.

    Args:
        model: the model.
        rows: tokenized rows.
        limit: tokens of one batch; with 1 every row has a batch of its own.
        packed: whether rows share a line.
    """
    parts: dict[int, list[torch.Tensor]] = {}
    for batch in make_batches(model, rows, limit, packed):
        values = losses(model, batch.to(model.base.device)).double().cpu()
        for row in batch.label_rows.unique().tolist():
            parts.setdefault(row, []).append(values[batch.label_rows.cpu() == row])
    return {row: torch.cat(tensors) for row, tensors in parts.items()}


def future_check(
    fixture: CheckFixture, rows: list[TokenizedRow], tolerance: float, reason: str
) -> CheckResult:
    """Other tokens in the second half of a row must not change the loss of its first half."""
    vocab_size = fixture.model.base.get_input_embeddings().num_embeddings
    first_halves, changed_rows = [], []
    for row in rows:
        in_first_half = np.arange(len(row.ids)) < len(row.ids) // 2
        other_ids = np.where(in_first_half, row.ids, (row.ids + 1) % vocab_size)
        first_halves.append(TokenizedRow(row.ids, in_first_half, row.index))
        changed_rows.append(TokenizedRow(other_ids, in_first_half, row.index))
    before = losses_by_row(fixture.model, first_halves, limit=1, packed=False)
    after = losses_by_row(fixture.model, changed_rows, limit=1, packed=False)
    return compare_to_tolerance(
        "no token sees a later one",
        f"loss in nats of the first halves of {len(rows)} rows, before and after every later token "
        "was replaced",
        max_abs_difference(before, after),
        tolerance,
        reason,
    )


def generation_checks(
    fixture: CheckFixture, rows: list[TokenizedRow], tolerance: float, reason: str
) -> list[CheckResult]:
    """Generate left-padded answers together with a cache; score their tokens in three ways."""
    model = fixture.model
    every = rows[:: max(1, len(rows) // PROMPTS)]
    prompts = [row.ids[: int(np.flatnonzero(row.supervised)[0])].tolist() for row in every]
    prompts = [prompt for prompt in prompts if prompt][:PROMPTS]
    names = ("left-padded in a batch = alone", "cached = full forward")
    if not prompts:
        return [not_applicable(name, "no row has a prompt") for name in names]
    # A stop token that ends some answers early, so that they leave the batch before the others.
    free = generate(model, prompts, set(), ANSWER_TOKENS)
    stop = early_stop_token([answer.ids for answer in free])
    answers = generate(model, prompts, stop, ANSWER_TOKENS)
    texts = [[*answer.ids, *stop] if answer.finished else answer.ids for answer in answers]

    pairs = dict(enumerate(zip(prompts, texts, strict=True)))
    alone = {i: cached_log_probs(model, [p], [t])[0] for i, (p, t) in pairs.items()}
    together = dict(enumerate(cached_log_probs(model, prompts, texts)))
    full = {i: full_log_probs(model, p, t) for i, (p, t) in pairs.items()}

    def chosen(log_probs: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        return {i: of_tokens(log_probs[i], texts[i]) for i in pairs}

    # Greedy decoding picked the most likely token, so this is 0 where generation is right.
    best = {i: log_probs.max(-1).values for i, log_probs in alone.items()}
    not_greedy = max(float((best[i] - chosen(alone)[i]).max()) for i in pairs)
    in_batch = max(not_greedy, max_abs_difference(chosen(alone), chosen(together)))
    without_cache = max_abs_difference(chosen(alone), chosen(full))
    compared = (
        f"log-probability of {sum(map(len, texts))} tokens of {len(prompts)} answers "
        f"({sum(answer.finished for answer in answers)} end before the others)"
    )
    return [
        compare_to_tolerance(
            names[0],
            f"{compared}, generated together and alone; and the distance of each from the most "
            "likely token",
            in_batch,
            tolerance,
            reason,
        ),
        compare_to_tolerance(
            names[1],
            f"{compared}, token by token with a cache and in one forward pass without",
            without_cache,
            tolerance,
            reason,
        ),
    ]


def early_stop_token(answers: list[list[int]]) -> set[int]:
    """A token that would end some answers earlier than others; empty if there is none.

    Args:
        answers: generated token ids of each answer.
    """
    ends = {
        token: [ids.index(token) if token in ids else len(ids) for ids in answers]
        for ids in answers
        for token in ids
    }
    spread = {token: max(positions) - min(positions) for token, positions in ends.items()}
    best = max(ends, key=lambda token: (spread[token], min(ends[token])))
    return {best} if spread[best] else set()


def cached_log_probs(
    model: TrainableChatModel, prompts: list[list[int]], texts: list[list[int]]
) -> list[torch.Tensor]:
    """Log-probabilities before each token of given texts, as generation computes them.

    Args:
        model: the model.
        prompts: token ids of each prompt; they are padded on the left.
        texts: token ids that are fed instead of generated ones.

    Returns:
        For each text, (tokens, vocabulary size) in float64.
    """
    hidden, batch, past = prefill(model, prompts)
    log_probs: list[list[torch.Tensor]] = [[] for _ in prompts]
    for step in range(max(map(len, texts))):
        if step:
            hidden = hidden_states(model, batch, past)[:, -1]
        scores = torch.log_softmax(logits_of(model.base, hidden), -1)
        for line, text in enumerate(texts):
            if step < len(text):
                log_probs[line].append(scores[line].double().cpu())
        # A text that is over repeats its last token: its line is not read any more.
        tokens = [text[min(step, len(text) - 1)] for text in texts]
        batch = next_position(batch, torch.tensor(tokens, device=batch.ids.device))
    return [torch.stack(scores) for scores in log_probs]


def full_log_probs(model: TrainableChatModel, prompt: list[int], text: list[int]) -> torch.Tensor:
    """The same for one text, from one forward pass: (tokens, vocabulary size) in float64."""
    batch, _ = left_pad(model, [prompt + text])
    hidden = hidden_states(model, batch)[0, -len(text) - 1 : -1]
    return torch.log_softmax(logits_of(model.base, hidden), -1).double().cpu()


def of_tokens(log_probs: torch.Tensor, text: list[int]) -> torch.Tensor:
    """The log-probability of each token of a text: (tokens, vocabulary size) -> (tokens,)."""
    return log_probs[torch.arange(len(text)), torch.tensor(text)]
