"""Generate answers in left-padded batches with a KV cache; the same code for every method.

Tokens are equal to those of transformers' `generate` (tests/chat/test_study.py). A soft prompt or
prefix is put before each row's own tokens, after its padding. peft's own generation puts it before
the padding, which changes the positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from tarazu.chat.fast import graphed_decoding
from tarazu.chat.model.batching import ChatBatch, TokenizedRow, make_batch
from tarazu.chat.model.forward import KVState, hidden_states
from tarazu.chat.model.loss import logits_of
from tarazu.chat.model.trainable import TrainableChatModel

MAX_LENGTH_RATIO = 1.5  # of the longest to the shortest prompt of one prefill pass on a CPU
_PER_POSITION = ("ids", "virtual_indices", "positions", "segments")  # (B, T) fields of a batch


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Args:
        ids: its token ids, without the end-of-turn token.
        finished: whether it ended in an end-of-turn token, not at `max_new_tokens`.
    """

    ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked. Temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0


@torch.no_grad()
def generate(
    model: TrainableChatModel,
    prompts: list[list[int]],
    stop: set[int],
    max_new_tokens: int,
    batch_rows: int = 16,
    sampling: Sampling = Sampling(),
    use_cuda_graph: bool | None = None,
) -> list[Answer]:
    """Generate an answer to each prompt. Prompts of similar length share a batch.

    Args:
        model: the model.
        prompts: token ids of each prompt.
        stop: token ids that end an answer.
        max_new_tokens: maximum length of an answer.
        batch_rows: prompts in a batch.
        sampling: how tokens are picked.
        use_cuda_graph: use `graphed_decoding` for greedy decoding; None: on a GPU.

    Returns:
        Answers in the order of `prompts`.
    """
    if use_cuda_graph is None:
        use_cuda_graph = model.base.device.type == "cuda"
    graphed = use_cuda_graph and sampling.temperature <= 0
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(by_length), batch_rows):
        chosen = by_length[start : start + batch_rows]
        batch_prompts = [prompts[i] for i in chosen]
        if graphed:
            batch_answers = _generate_graphed(model, batch_prompts, stop, max_new_tokens)
        else:
            batch_answers = _generate_batch(model, batch_prompts, stop, max_new_tokens, sampling)
        answers.update(zip(chosen, batch_answers, strict=True))
    return [answers[i] for i in range(len(prompts))]


def stream(
    model: TrainableChatModel,
    prompt: list[int],
    stop: set[int],
    max_new_tokens: int,
    sampling: Sampling,
) -> Iterator[int]:
    """Yield the token ids of one answer as they are generated, for a chat."""
    batch, state = left_pad(model, [prompt])
    with torch.no_grad():
        for _ in range(max_new_tokens):
            hidden = hidden_states(model, batch, state)[:, -1]
            token = _sample_token(logits_of(model.base, hidden), sampling)
            if int(token) in stop:
                return
            yield int(token)
            batch = next_position(batch, token)


def _generate_batch(
    model: TrainableChatModel,
    prompts: list[list[int]],
    stop: set[int],
    max_new_tokens: int,
    sampling: Sampling,
) -> list[Answer]:
    """Answers to one batch of prompts. Finished lines leave the batch."""
    hidden, batch, state = prefill(model, prompts)
    ids: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    live = list(range(len(prompts)))  # the prompt of each line that is not finished
    for step in range(max_new_tokens):
        if step:
            hidden = hidden_states(model, batch, state)[:, -1]
        tokens = _sample_token(logits_of(model.base, hidden), sampling)

        unfinished = []  # lines that go on
        for line, (row, token) in enumerate(zip(live, tokens.tolist(), strict=True)):
            if token in stop:
                finished[row] = True
            else:
                ids[row].append(token)
                unfinished.append(line)
        if not unfinished:
            break

        batch = next_position(batch, tokens)
        if len(unfinished) < len(live):
            lines = torch.tensor(unfinished, device=tokens.device)
            state.select(lines)
            batch = replace(batch, **{name: getattr(batch, name)[lines] for name in _PER_POSITION})
            live = [live[line] for line in unfinished]
    return [Answer(*answer) for answer in zip(ids, finished, strict=True)]


def _generate_graphed(
    model: TrainableChatModel, prompts: list[list[int]], stop: set[int], max_new_tokens: int
) -> list[Answer]:
    """As `_generate_batch`, greedily, with one captured CUDA graph for a decoding step."""
    hidden, batch, state = prefill(model, prompts)
    first_tokens = logits_of(model.base, hidden).argmax(-1)
    steps = graphed_decoding.DecodeState(model, batch, state, first_tokens, max_new_tokens)
    answers = []
    for line in graphed_decoding.decode(steps, stop, max_new_tokens):
        end = next((i for i, token in enumerate(line) if token in stop), None)
        answers.append(Answer(line[:end], finished=end is not None))
    return answers


def prefill(
    model: TrainableChatModel, prompts: list[list[int]]
) -> tuple[torch.Tensor, ChatBatch, KVState]:
    """Run the prompts through the model and keep their keys and values.

    On a CPU a padding token costs as much as any other, so prompts of similar length are run
    together and their states are joined.

    Args:
        model: the model.
        prompts: token ids of each prompt, the shortest first.

    Returns:
        The last hidden states (B, width), the last position of each prompt as a batch (B, 1), and
        the KV cache of all prompts.
    """
    groups = _similar_lengths(prompts) if model.base.device.type == "cpu" else [prompts]
    padded = [left_pad(model, group) for group in groups]
    hidden = torch.cat([hidden_states(model, batch, state)[:, -1] for batch, state in padded])
    (batch, state), others = padded[0], padded[1:]
    if not others:
        return hidden, batch, state
    state.concat([other for _, other in others])
    last_positions = {
        name: torch.cat([getattr(batch, name)[:, -1:] for batch, _ in padded])
        for name in _PER_POSITION
    }
    return hidden, replace(batch, **last_positions), state


def _similar_lengths(prompts: list[list[int]]) -> list[list[list[int]]]:
    """Group prompts, sorted by length, so that `MAX_LENGTH_RATIO` bounds each group."""
    groups: list[list[list[int]]] = []
    for prompt in prompts:
        if groups and len(prompt) <= MAX_LENGTH_RATIO * len(groups[-1][0]):
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups


def left_pad(model: TrainableChatModel, prompts: list[list[int]]) -> tuple[ChatBatch, KVState]:
    """The prompts as a batch (B, T), padded on the left, and an empty KV cache with the prefix."""
    rows = [
        [TokenizedRow(np.array(prompt), np.zeros(len(prompt), bool), i)]
        for i, prompt in enumerate(prompts)
    ]
    batch = make_batch(rows, model.prompt_length, model.prefix_length, pad_left=True)
    batch = batch.to(model.base.device)
    return batch, KVState(model, batch)


def next_position(batch: ChatBatch, tokens: torch.Tensor) -> ChatBatch:
    """A batch (B, 1) of the tokens (B,) that follow each line of a batch."""
    return replace(
        batch,
        ids=tokens[:, None],
        virtual_indices=torch.full_like(tokens[:, None], -1),
        positions=batch.positions[:, -1:] + 1,
        segments=batch.segments[:, -1:],
    )


def _sample_token(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Pick the next tokens (B,) from logits (B, V).

    Nucleus sampling (Holtzman et al. 2019, arXiv:1904.09751): draw from the most probable tokens
    that together have the probability `top_p`.
    """
    if sampling.temperature <= 0:
        return logits.argmax(-1)
    probabilities, ids = torch.softmax(logits / sampling.temperature, -1).sort(descending=True)
    more_probable = probabilities.cumsum(-1) - probabilities  # mass before each token
    probabilities[more_probable > sampling.top_p] = 0
    return ids.gather(1, torch.multinomial(probabilities, 1))[:, 0]
