"""What must hold for a chat model, whatever the method: how rows share a batch must not change what the model computes."""

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
from tarazu.chat.row_losses import losses, make_batches
from tarazu.engine.invariants.fixture import CheckFixture, CheckResult, TaskInvariants, compare_to_tolerance, max_abs_difference, not_applicable
from tarazu.engine.invariants.perturbations import embeddings_perturbed

WRITTEN = 8  # tokens of each answer
PROMPTS = 3
Losses = dict[int, torch.Tensor]  # nats of each supervised token, by row


class ChatInvariants(TaskInvariants):
    """Invariants of a chat model: how rows share a batch must not change what the model computes."""

    def subset_rows(self, data: ChatData, count: int) -> list[int]:
        """Rows of many lengths from the shorter third of the first 64 training rows, so that checks stay quick."""
        lengths = data.store.lengths("train")[:64]
        order = np.argsort(lengths, kind="stable")[: max(count, len(lengths) // 3)]
        positions = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
        return [int(order[position]) for position in positions]

    def checks(self, fixture: CheckFixture) -> Iterator[CheckResult]:
        yield from checks(fixture)


@torch.no_grad()
def checks(fixture: CheckFixture) -> Iterator[CheckResult]:
    """One by one, the checks of one method's forward pass, in eval mode and in the recipe's precision."""
    data, model = fixture.data, fixture.model
    rows = [TokenizedRow(*data.store.row("train", i), index=i) for i in fixture.rows]
    limit = fixture.recipe.budget.micro_batch_tokens
    alone = losses_by_row(model, data, rows, 1, packed=False)
    with embeddings_perturbed(model.module, fixture.unit):
        noise = max_abs_difference(alone, losses_by_row(model, data, rows, 1, packed=False))
    tolerance, reason = fixture.allowed(noise)
    text = f"nats of {sum(map(len, alone.values()))} answer tokens of {len(rows)} rows"
    for name, packed in (("padded = alone", False), ("packed = alone", True)):
        together = losses_by_row(model, data, rows, limit, packed)
        how = "packed into as few lines as fit" if packed else "side by side, padded"
        yield compare_to_tolerance(
            name,
            f"{text}, {how}, and each row alone",
            max_abs_difference(alone, together),
            tolerance,
            reason,
        )
    yield future_check(fixture, rows, tolerance, reason)
    yield from generation_checks(fixture, rows, tolerance, reason)


def future_check(
    fixture: CheckFixture, rows: list[TokenizedRow], tolerance: float, reason: str
) -> CheckResult:
    """Other words in the second half of a row must not change anything in its first half."""
    data, words = (
        fixture.data,
        fixture.model.base.get_input_embeddings().num_embeddings,
    )
    halves = {row.index: len(row.ids) // 2 for row in rows}
    marked = [
        TokenizedRow(row.ids, np.arange(len(row.ids)) < halves[row.index], row.index)
        for row in rows
    ]
    changed = [
        TokenizedRow(
            np.where(row.supervised, row.ids, (row.ids + 1) % words), row.supervised, row.index
        )
        for row in marked
    ]
    before, after = (
        losses_by_row(fixture.model, data, some, 1, packed=False) for some in (marked, changed)
    )
    text = f"nats of the first halves of {len(rows)} rows, before and after every later word was replaced"
    return compare_to_tolerance(
        "no word sees a later one", text, max_abs_difference(before, after), tolerance, reason
    )


def losses_by_row(
    model: TrainableChatModel,
    data: ChatData,
    rows: list[TokenizedRow],
    limit: int,
    packed: bool,
) -> Losses:
    """Nats of every supervised token, in the row's order."""
    out: dict[int, list[torch.Tensor]] = {}
    for batch in make_batches(model, rows, limit, packed):
        values = losses(model, batch.to(model.base.device)).double().cpu()
        for row in batch.label_rows.unique().tolist():
            out.setdefault(row, []).append(values[batch.label_rows.cpu() == row])
    return {row: torch.cat(parts) for row, parts in out.items()}


def generation_checks(
    fixture: CheckFixture, rows: list[TokenizedRow], tolerance: float, reason: str
) -> list[CheckResult]:
    """Answers written together, left-padded, with a cache; then the same words scored in three ways."""
    model = fixture.model
    prompts = [
        row.ids[: int(np.flatnonzero(row.supervised)[0])].tolist()
        for row in rows[:: max(1, len(rows) // PROMPTS)]
    ]
    prompts = [prompt for prompt in prompts if prompt][:PROMPTS]
    names = ("left-padded in a batch = alone", "cached = full forward")
    if not prompts:
        return [not_applicable(name, "no row has a prompt") for name in names]
    stop = parting_word([answer.ids for answer in generate(model, prompts, set(), WRITTEN)])
    answers = generate(model, prompts, stop, WRITTEN)
    texts = [[*answer.ids, *stop] if answer.finished else answer.ids for answer in answers]
    alone = {
        i: cached(model, [prompt], [text])[0]
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    }
    full = {
        i: uncached(model, prompt, text)
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    }
    together = dict(enumerate(cached(model, prompts, texts)))
    written = {
        i: picked(scores, text) for (i, scores), text in zip(alone.items(), texts, strict=True)
    }
    missed = max(
        float((scores.max(-1).values - written[i]).max()) for i, scores in alone.items()
    )  # 0 where the word is the likeliest
    count = sum(map(len, texts))
    first = max(
        missed, max_abs_difference(written, {i: picked(together[i], texts[i]) for i in together})
    )
    second = max_abs_difference(written, {i: picked(full[i], texts[i]) for i in full})
    noun = f"log-probability of {count} words that {len(prompts)} answers hold ({sum(a.finished for a in answers)} end before the others)"
    return [
        compare_to_tolerance(
            names[0],
            f"{noun}, written together and alone; and what each lacks to be the likeliest",
            first,
            tolerance,
            reason,
        ),
        compare_to_tolerance(
            names[1],
            f"{noun}, one word at a time with a cache and all at once without",
            second,
            tolerance,
            reason,
        ),
    ]


def parting_word(answers: list[list[int]]) -> set[int]:
    """A word at which some answers would end earlier than others, so that they leave the batch; none if there is no such word."""
    places = {
        word: [ids.index(word) if word in ids else len(ids) for ids in answers]
        for ids in answers
        for word in ids
    }
    best = max(places, key=lambda word: (max(places[word]) - min(places[word]), min(places[word])))
    return {best} if len(set(places[best])) > 1 else set()


def cached(
    model: TrainableChatModel, prompts: list[list[int]], texts: list[list[int]]
) -> list[torch.Tensor]:
    """Log-probabilities (words, V) before each word of the given texts, as generation computes them."""
    hidden, batch, past = prefill(model, prompts)
    out: list[list[torch.Tensor]] = [[] for _ in prompts]
    for step in range(max(map(len, texts))):
        if step:
            hidden = hidden_states(model, batch, past)[:, -1]
        scores = torch.log_softmax(logits_of(model.base, hidden), -1)
        for line, text in enumerate(texts):
            if step < len(text):
                out[line].append(scores[line].double().cpu())
        words = torch.tensor(
            [text[min(step, len(text) - 1)] for text in texts], device=batch.ids.device
        )
        batch = next_position(batch, words)
    return [torch.stack(scores) for scores in out]


def uncached(model: TrainableChatModel, prompt: list[int], text: list[int]) -> torch.Tensor:
    """The same from one forward pass over prompt and text."""
    batch, _ = left_pad(model, [prompt + text])
    hidden = hidden_states(model, batch)[0, -len(text) - 1 : -1]
    return torch.log_softmax(logits_of(model.base, hidden), -1).double().cpu()


def picked(scores: torch.Tensor, text: list[int]) -> torch.Tensor:
    return scores[torch.arange(len(text)), torch.tensor(text)]
