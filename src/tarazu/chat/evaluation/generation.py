"""Writing answers: batched, left-padded, cached, greedy by default; the same code for every method.

Equal to transformers' `generate` token by token (tests/chat/test_generation.py); a soft prompt or prefix is laid before
each row's own tokens, after its padding, which peft's own generation gets wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from tarazu.chat.fast import graphed_decoding
from tarazu.chat.model.batching import ChatBatch, TokenizedRow, make_batch
from tarazu.chat.model.forward import KVState, hidden_states
from tarazu.chat.model.loss import logits_of
from tarazu.chat.model.trainable import TrainableChatModel

MAX_LENGTH_RATIO = 1.5  # prompts that are read together on a CPU: the longest over the shortest


@dataclass(frozen=True)
class Answer:
    """Token ids of an answer, without its end-of-turn; `finished` says whether it ended by itself."""

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
    """Answers to `prompts` (token ids), in their order, of at most `max_new_tokens` tokens. Prompts of like length run together.

    `use_cuda_graph` chooses the fast path of `replay.py` (greedy only); by default on a GPU.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    fast = (
        model.base.device.type == "cuda" if use_cuda_graph is None else use_cuda_graph
    ) and sampling.temperature <= 0
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_rows):
        chosen = order[start : start + batch_rows]
        asked = [prompts[i] for i in chosen]
        written = (
            _replay_batch(model, asked, stop, max_new_tokens)
            if fast
            else _generate_batch(model, asked, stop, max_new_tokens, sampling)
        )
        answers.update(zip(chosen, written, strict=True))
    return [answers[i] for i in range(len(prompts))]


def stream(
    model: TrainableChatModel, prompt: list[int], stop: set[int], max_new_tokens: int, sampling: Sampling
):
    """Yields one prompt's answer token by token, for a chat."""
    batch, past = left_pad(model, [prompt])
    with torch.no_grad():
        for _ in range(max_new_tokens):
            token = _sample_token(
                logits_of(model.base, hidden_states(model, batch, past)[:, -1]), sampling
            )
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
    hidden, batch, past = prefill(model, prompts)
    written: list[list[int]] = [[] for _ in prompts]
    finished = [False] * len(prompts)
    live = list(range(len(prompts)))
    for step in range(max_new_tokens):
        if step:
            hidden = hidden_states(model, batch, past)[:, -1]
        tokens = _sample_token(logits_of(model.base, hidden), sampling)
        keep = []
        for place, (row, token) in enumerate(zip(live, tokens.tolist(), strict=True)):
            if token in stop:
                finished[row] = True
            else:
                written[row].append(token)
                keep.append(place)
        if not keep:
            break
        batch = next_position(batch, tokens)
        if len(keep) < len(live):
            lines = torch.tensor(keep, device=tokens.device)
            past.select(lines)
            batch, live = _select(batch, lines), [live[place] for place in keep]
    return [Answer(ids, done) for ids, done in zip(written, finished, strict=True)]


def _replay_batch(
    model: TrainableChatModel, prompts: list[list[int]], stop: set[int], max_new_tokens: int
) -> list[Answer]:
    hidden, batch, past = prefill(model, prompts)
    first = logits_of(model.base, hidden).argmax(-1)
    lines = graphed_decoding.decode(
        graphed_decoding.DecodeState(model, batch, past, first, max_new_tokens), stop, max_new_tokens
    )
    ends = [next((i for i, token in enumerate(line) if token in stop), None) for line in lines]
    return [Answer(line[:end], end is not None) for line, end in zip(lines, ends, strict=True)]


def prefill(
    model: TrainableChatModel, prompts: list[list[int]]
) -> tuple[torch.Tensor, ChatBatch, KVState]:
    """The prompts' last hidden states (B, width), the last place of each, and what stands before it.

    On a CPU, where padding costs what words cost, prompts of unlike length are read apart.
    """
    parts = (
        [left_pad(model, some) for some in _alike(prompts)]
        if model.base.device.type == "cpu"
        else [left_pad(model, prompts)]
    )
    hidden = torch.cat([hidden_states(model, batch, past)[:, -1] for batch, past in parts])
    (first, past), others = parts[0], parts[1:]
    if not others:
        return hidden, first, past
    past.concat([other for _, other in others])
    last = {
        name: torch.cat([getattr(batch, name)[:, -1:] for batch, _ in parts])
        for name in ("ids", "virtual_indices", "positions", "segments")
    }
    return hidden, replace(first, **last), past


def _alike(prompts: list[list[int]]) -> list[list[list[int]]]:
    """The prompts, which come shortest first, in groups whose longest is at most `MAX_LENGTH_RATIO` times their shortest."""
    groups: list[list[list[int]]] = []
    for prompt in prompts:
        if groups and len(prompt) <= MAX_LENGTH_RATIO * len(groups[-1][0]):
            groups[-1].append(prompt)
        else:
            groups.append([prompt])
    return groups


def left_pad(model: TrainableChatModel, prompts: list[list[int]]) -> tuple[ChatBatch, KVState]:
    """The prompts, left-padded, and what stands before them."""
    rows = [[TokenizedRow(np.array(p), np.zeros(len(p), bool), i)] for i, p in enumerate(prompts)]
    prefix = model.prefix_length
    batch = make_batch(rows, model.prompt_length, prefix, pad_left=True).to(
        model.base.device
    )
    return batch, KVState(model, batch)


def next_position(batch: ChatBatch, tokens: torch.Tensor) -> ChatBatch:
    """One new place a line, after the last one."""
    return replace(
        batch,
        ids=tokens[:, None],
        virtual_indices=torch.full_like(tokens[:, None], -1),
        positions=batch.positions[:, -1:] + 1,
        segments=batch.segments[:, -1:],
    )


def _select(batch: ChatBatch, lines: torch.Tensor) -> ChatBatch:
    return replace(
        batch,
        **{
            name: getattr(batch, name)[lines]
            for name in ("ids", "virtual_indices", "positions", "segments")
        },
    )


def _sample_token(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """(B,) next tokens from (B, V) logits; nucleus sampling as in Holtzman et al. 2019 (arXiv:1904.09751)."""
    if sampling.temperature <= 0:
        return logits.argmax(-1)
    shares, words = torch.softmax(logits / sampling.temperature, -1).sort(descending=True)
    shares[shares.cumsum(-1) - shares > sampling.top_p] = 0
    return words.gather(1, torch.multinomial(shares, 1))[:, 0]
