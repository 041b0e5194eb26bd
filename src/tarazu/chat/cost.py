"""What a chat method costs, timed on a few real rows and prompts and scaled to the whole study."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tarazu.chat.answers import Sample, evaluation_prompts, turns_of, validation_prompts
from tarazu.chat.cost_outline import outline
from tarazu.chat.evaluation import text_metrics
from tarazu.chat.evaluation.generation import generate
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.prepared_data import ChatData
from tarazu.chat.row_losses import make_batches, row_losses, summed_losses, tokenized_rows
from tarazu.chat.settings import ChatRecipe
from tarazu.engine.cost import CostOutline, TaskCost

# Tokens timed together with prefill. On a GPU a decoding graph is captured among them.
FIRST_TOKENS = {"cpu": 1, "cuda": 8}
# Tokens timed after prefill. Use a typical answer length: a larger KV cache slows every step.
MORE_TOKENS = {"cpu": 4, "cuda": 192}
CPU_ROWS, CPU_PASSAGES, SCORED_ANSWERS = 8, 2, 8  # how many are timed


class ChatCost(TaskCost):
    """Cost of a chat method."""

    has_shapes = True  # a GPU plans or captures each packed width when it first comes
    rows_differ = True

    def outline(
        self, recipe: ChatRecipe, name: str, data: ChatData, device: torch.device
    ) -> CostOutline:
        return outline(recipe, name, data, device)

    def with_longest_row(self, data: ChatData, rows: list[int]) -> list[int]:
        longest = int(data.store.lengths("train").argmax())
        return [longest, *[row for row in rows if row != longest][: len(rows) - 1]]

    def row_weight(self, data: ChatData, rows: Sequence[int]) -> int:
        return int(data.store.lengths("train")[rows].sum())

    def pass_shapes(
        self, model: TrainableChatModel, data: ChatData, recipe: ChatRecipe, rows: list[int]
    ) -> set[int]:
        """Widths of a step's packed passes; empty where rows are padded."""
        if not data.packed:
            return set()
        tokenized = tokenized_rows(data, "train", rows)
        batches = make_batches(model, tokenized, recipe.budget.micro_batch_tokens, packed=True)
        return {batch.ids.shape[1] for batch in batches}

    def reset(self, model: TrainableChatModel) -> None:
        if model.graphed_forward is not None:
            model.graphed_forward.clear()

    def phase_seconds(
        self, model: TrainableChatModel, data: ChatData, recipe: ChatRecipe
    ) -> dict[str, float]:
        seconds_per_token = _seconds_per_token(model, data, recipe)
        validation = data.store.lengths("validation")[: recipe.budget.validation_rows]
        return {
            "validate": seconds_per_token * float(validation.sum()),
            "sample": _generation_seconds(
                model, data, recipe, validation_prompts(data, recipe), _answer_limit(recipe)
            ),
            "evaluate": seconds_per_token * float(data.store.lengths("test").sum())
            + _forgetting_seconds(model, data, recipe),
            "generate": _final_generation_seconds(model, data, recipe),
        }

    def answer_bytes(self, data: ChatData, recipe: ChatRecipe, validations: int) -> int:
        """Bytes of the samples on disk, if every answer has all tokens that it may have."""
        test = data.store.column("test", "answer_bytes"), data.store.column("test", "answer_tokens")
        bytes_per_token = float(test[0].sum()) / max(1, float(test[1].sum()))

        def size(prompts: list[Sample], max_new_tokens: int) -> float:
            fields = {
                "output": "",
                "finished": False,
                "tokens": max_new_tokens,
                "checks": {},
                "scores": text_metrics.score("a b", "a b", "a c"),
            }
            lines = (json.dumps(prompt | fields, ensure_ascii=False) for prompt in prompts)
            return sum(len(line.encode()) + bytes_per_token * max_new_tokens for line in lines)

        limit = _answer_limit(recipe)
        reading = size(data.reading, recipe.reading.max_new_tokens) if recipe.reading else 0.0
        final = size(evaluation_prompts(data, recipe), limit)
        sampled = size(validation_prompts(data, recipe), limit)
        return round(final + reading + validations * sampled)


def _answer_limit(recipe: ChatRecipe) -> int:
    return recipe.generation.max_new_tokens


def _seconds_per_token(trainable: TrainableChatModel, data: ChatData, recipe: ChatRecipe) -> float:
    """Seconds of a forward pass with loss, for each token of a row."""
    limit, lengths = recipe.budget.micro_batch_tokens, data.store.lengths("test")
    if trainable.base.device.type == "cuda":
        # A GPU needs as long for a few rows as for a full pass, so a full pass is timed.
        count = rows_of_a_full_pass(lengths, limit)
    else:
        count = min(CPU_ROWS, data.size("test"))
    row_losses(trainable, data, "test", limit, 1)  # the first pass also reads the weights
    seconds = timed(trainable, lambda: row_losses(trainable, data, "test", limit, count))
    return seconds / float(lengths[:count].sum())


def _forgetting_seconds(trainable: TrainableChatModel, data: ChatData, recipe: ChatRecipe) -> float:
    """Seconds of the loss of the forgetting passages of all languages."""
    limit, seconds = recipe.budget.micro_batch_tokens, 0.0
    on_gpu = trainable.base.device.type == "cuda"
    for passages in data.forgetting.values():
        lengths = np.array([len(row.ids) for row in passages.rows])
        count = rows_of_a_full_pass(lengths, limit) if on_gpu else CPU_PASSAGES
        rows = passages.rows[:count]
        spent = timed(trainable, lambda rows=rows: summed_losses(trainable, data, rows, limit))
        seconds += spent * float(lengths.sum()) / float(lengths[: len(rows)].sum())
    return seconds


def _final_generation_seconds(
    trainable: TrainableChatModel, data: ChatData, recipe: ChatRecipe
) -> float:
    """Seconds of all final answers and their scores."""
    prompts = evaluation_prompts(data, recipe)
    seconds = _generation_seconds(trainable, data, recipe, prompts, _answer_limit(recipe))
    if recipe.reading:
        limit = recipe.reading.max_new_tokens
        seconds += _generation_seconds(trainable, data, recipe, data.reading, limit)
    return seconds + _scoring_seconds(prompts) + _scoring_seconds(data.reading)


def rows_of_a_full_pass(lengths: np.ndarray, limit: int) -> int:
    """How many of the first rows fill one pass.

    Args:
        lengths: tokens of each row, (N,).
        limit: tokens of a pass.
    """
    return max(1, int(np.searchsorted(np.cumsum(lengths), limit, side="right")))


def _generation_seconds(
    trainable: TrainableChatModel,
    data: ChatData,
    recipe: ChatRecipe,
    prompts: list[Sample],
    max_new_tokens: int,
) -> float:
    """Seconds of answering all prompts to the length limit.

    Prefill and a decoding step are timed on the middle batch and scaled to all batches.
    """
    if not prompts:
        return 0.0
    began = time.perf_counter()
    ids = sorted((data.template.encode_prompt(turns_of(prompt)) for prompt in prompts), key=len)
    encoding = time.perf_counter() - began
    size, device = recipe.generation.batch_rows, trainable.base.device.type
    batches = [ids[start : start + size] for start in range(0, len(ids), size)]
    # The middle batch; a smaller last batch does not count.
    middle = batches[(len(batches) - (len(batches[-1]) < size)) // 2]
    first = FIRST_TOKENS[device]
    more = max(1, min(MORE_TOKENS[device], max_new_tokens - first))
    prefill = timed(trainable, lambda: generate(trainable, middle, set(), first, size))
    longer = timed(
        trainable, lambda: generate(trainable, middle, set(), first + more, size), warm=True
    )
    step = max(0.0, longer - prefill) / more
    # Prefill grows with the positions of a batch. A step of a small batch takes as long as one of
    # a large batch on a GPU, and less in proportion on a CPU.
    positions = sum(len(batch) * len(batch[-1]) for batch in batches)
    prefills = positions / (len(middle) * len(middle[-1]))
    relative = [1.0 if device == "cuda" else len(batch) / len(middle) for batch in batches]
    steps = sum(relative) * max(0, max_new_tokens - first)
    return encoding + prefill * prefills + step * steps


def _scoring_seconds(prompts: list[Sample]) -> float:
    """Seconds of scoring the answers, timed on a few references scored against each other."""
    scored = [p for p in prompts if p["reference"]][:SCORED_ANSWERS]
    if not scored:
        return 0.0
    began = time.perf_counter()
    for prompt, other in zip(scored, [*scored[1:], scored[0]], strict=True):
        text_metrics.score(prompt["reference"], prompt["turns"][-1]["text"], other["reference"])
    return (time.perf_counter() - began) * len(prompts) / len(scored)


def timed(trainable: TrainableChatModel, work: Callable[[], object], warm: bool = False) -> float:
    """Seconds of `work`.

    Args:
        trainable: the model; its device is waited for.
        work: what is timed.
        warm: the like has run before. Otherwise a GPU runs the work once without timing it, because
            the first time may compile.
    """
    on_gpu = trainable.base.device.type == "cuda"
    if on_gpu and not warm:
        work()
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began
