"""What a chat method takes: timed on a few real rows and prompts and multiplied out, or told from the model's shape."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tarazu.chat.data.chat_template import Turn
from tarazu.chat.evaluation import text_metrics
from tarazu.chat.evaluation.generation import generate
from tarazu.chat.compatibility import require_compatible
from tarazu.chat.fast import lightweight_adapters
from tarazu.chat.flops import FlopCount, count_flops, flops_per_token
from tarazu.chat.model import flex_attention, loading, quantization
from tarazu.chat.model.loss import LARGE_CHUNK, SMALL_CHUNK
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.settings import ChatRecipe
from tarazu.chat.answers import evaluation_prompts
from tarazu.chat.model.building import NO_CHECKPOINTING
from tarazu.chat.prepared_data import ChatData
from tarazu.chat.row_losses import make_batches, row_losses, summed_losses, tokenized_rows
from tarazu.engine.precision import uses_bfloat16
from tarazu.engine.cost import CostOutline, TaskCost

BEGIN = {
    "cpu": 1,
    "cuda": 8,
}  # words that are timed together with reading the prompt (a GPU captures a graph among them)
SOME = {
    "cpu": 4,
    "cuda": 192,
}  # words after them, timed apart: the room for an answer makes each of them slower, so all of a usual one
PASSAGES = 2


class ChatCost(TaskCost):
    """Cost of a chat method: timed on a few real rows and prompts, or computed from the model's shape."""

    has_shapes = True  # a GPU plans or captures each packed width when it first comes
    rows_differ = True

    def with_longest_row(self, data: ChatData, rows: list[int]) -> list[int]:
        longest = int(data.store.lengths("train").argmax())
        return [longest, *[row for row in rows if row != longest][: len(rows) - 1]]

    def row_weight(self, data: ChatData, rows: Sequence[int]) -> int:
        return int(data.store.lengths("train")[rows].sum())

    def pass_shapes(
        self, model: TrainableChatModel, data: ChatData, recipe: ChatRecipe, rows: list[int]
    ) -> set[int]:
        """Widths of a step's packed passes."""
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
        return phase_seconds(model, data, recipe)

    def answer_bytes(self, data: ChatData, recipe: ChatRecipe, validations: int) -> int:
        return answer_bytes(data, recipe, validations)

    def outline(
        self, recipe: ChatRecipe, name: str, data: ChatData, device: torch.device
    ) -> CostOutline:
        return outline(recipe, name, data, device)


def phase_seconds(
    trainable: TrainableChatModel, data: ChatData, recipe: ChatRecipe
) -> dict[str, float]:
    """Seconds of one validation, of its sampled answers, and of the final evaluation and generation."""
    limit = recipe.budget.micro_batch_tokens
    lengths = {split: data.store.lengths(split) for split in ("validation", "test")}
    full = (
        trainable.base.device.type == "cuda"
    )  # there a pass of eight rows takes as long as a full one: only that tells
    few = filling(lengths["test"], limit) if full else min(8, data.size("test"))
    row_losses(
        trainable, data, "test", limit, 1
    )  # the first pass reads the weights in: once in a run, not once a row
    spent = timed(trainable, lambda: row_losses(trainable, data, "test", limit, few))
    each = spent / float(lengths["test"][:few].sum())
    evaluate = each * float(lengths["test"].sum())
    for passages in data.forgetting.values():
        size = np.array([len(row.ids) for row in passages.rows])
        some = passages.rows[: filling(size, limit) if full else PASSAGES]
        spent = timed(trainable, lambda rows=some: summed_losses(trainable, data, rows, limit))
        evaluate += spent * float(size.sum()) / sum(len(row.ids) for row in some)
    asked = [a for a in evaluation_prompts(data, recipe) if a["from"] == "questions"][
        : recipe.generation.samples_per_validation
    ]
    final = generation_seconds(trainable, data, recipe, evaluation_prompts(data, recipe), recipe.generation.max_new_tokens
    )
    if data.reading:
        final += generation_seconds(trainable, data, recipe, data.reading, recipe.reading.max_new_tokens
        )
    final += judging(evaluation_prompts(data, recipe)) + judging(data.reading)
    sample = generation_seconds(trainable, data, recipe, asked, recipe.generation.max_new_tokens
    )
    return {
        "validate": each * float(lengths["validation"][: recipe.budget.validation_rows].sum()),
        "sample": sample,
        "evaluate": evaluate,
        "generate": final,
    }


def filling(lengths: np.ndarray, limit: int) -> int:
    """How many of the first rows fill one pass of `limit` tokens; all of them where they do not."""
    return max(1, int(np.searchsorted(np.cumsum(lengths), limit, side="right")))


def generation_seconds(
    trainable: TrainableChatModel,
    data: ChatData,
    recipe: ChatRecipe,
    asked: list[dict],
    most: int,
) -> float:
    """Seconds of answering all of `asked` to the end: the first word and some more of the middle batch are timed."""
    if not asked:
        return 0.0
    began = time.perf_counter()
    prompts = sorted(
        (
            data.template.encode_prompt([Turn(t["role"], t["text"]) for t in a["turns"]])
            for a in asked
        ),
        key=len,
    )
    encoding = time.perf_counter() - began
    size = recipe.generation.batch_rows
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    middle = batches[
        len(batches) // 2 if len(batches[-1]) == size else max(0, (len(batches) - 1) // 2)
    ]
    begin = BEGIN[trainable.base.device.type]
    some = max(1, min(SOME[trainable.base.device.type], most - begin))
    first = timed(trainable, lambda: generate(trainable, middle, set(), begin, size))
    more = timed(
        trainable, lambda: generate(trainable, middle, set(), begin + some, size), warm=True
    )
    step = max(0.0, more - first) / some
    places = [len(batch) * len(batch[-1]) for batch in batches]
    of_middle = len(middle) * len(middle[-1])
    together = (
        trainable.base.device.type == "cuda"
    )  # there a small batch takes as long as a large one
    steps = sum(1 if together else len(batch) / len(middle) for batch in batches) * max(
        0, most - begin
    )
    return encoding + first * sum(places) / of_middle + step * steps


def judging(asked: list[dict]) -> float:
    """Seconds of scoring the answers: a few references are scored, each against the next one."""
    some = [(a["reference"], a["turns"][-1]["text"]) for a in asked if a["reference"]][:8]
    if not some:
        return 0.0
    began = time.perf_counter()
    for (said, question), (other, _) in zip(some, [*some[1:], some[0]], strict=True):
        text_metrics.score(said, question, other)
    return (time.perf_counter() - began) * len(asked) / len(some)


def answer_bytes(data: ChatData, recipe: ChatRecipe, validations: int) -> int:
    """Bytes of a run's answers on disk: of the last ones, and of those sampled at each of its `validations`. Answers have all tokens they may."""
    asked = evaluation_prompts(data, recipe)
    answers = data.store.column("test", "answer_bytes").sum() / max(
        1, data.store.column("test", "answer_tokens").sum()
    )  # bytes of a token
    sampled = [a for a in asked if a["from"] == "questions"][: recipe.generation.samples_per_validation]

    def size(some: list[dict], most: int) -> float:
        fields = {
            "output": "",
            "finished": False,
            "tokens": most,
            "checks": {},
            "scores": text_metrics.score("a b", "a b", "a c"),
        }
        return sum(
            len(json.dumps(a | fields, ensure_ascii=False).encode()) + answers * most for a in some
        )

    read = size(data.reading, recipe.reading.max_new_tokens) if data.reading else 0.0
    most = recipe.generation.max_new_tokens
    return round(size(asked, most) + read + validations * size(sampled, most))


def timed(trainable: TrainableChatModel, work: Callable[[], object], warm: bool = False) -> float:
    """Seconds of the second run where the first may compile, of the first on a CPU or where its like has run (`warm`)."""
    cuda = trainable.base.device.type == "cuda"
    if cuda and not warm:
        work()
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def outline(
    recipe: ChatRecipe, name: str, data: ChatData, device: torch.device
) -> CostOutline:
    """The method on a model without weights: its FLOPs and bytes. Raises what building the method raises."""
    method, low = (
        recipe.methods[name],
        torch.bfloat16 if uses_bfloat16(recipe.budget, device) else torch.float32,
    )
    require_compatible(recipe, name)
    model = meta_model(recipe, device, low)
    weights, unpacked = weight_bytes(recipe, model, low)
    with torch.device("meta"):
        trainable = method.attach(model, data.tokenizer)
        if recipe.fast:
            lightweight_adapters.use_lightweight_forward(model)
    trained = sum(p.numel() for p in trainable.trainable().values())
    lengths, supervised = data.store.lengths("train"), data.store.column("train", "answer_tokens")
    share = float(supervised.sum() / lengths.sum())
    train, plain = count_flops(trainable), count_flops(trainable, backward=False)
    in_pass = min(
        recipe.budget.micro_batch_tokens,
        (method.batch_rows or recipe.budget.batch_rows) * float(lengths.mean()),
    )
    each = flops_per_token(train, trainable, lengths, share, in_pass)
    tokens = recipe.budget.tokens or recipe.budget.epochs * float(lengths.sum())
    forward = flops_per_token(plain, trainable, lengths, share, in_pass)
    steps, rows = _decoding(recipe, data)
    return CostOutline(
        train_flops=each * tokens if trained else 0.0,
        evaluate_flops=forward * float(data.store.lengths("test").sum()) + _passages(plain, data),
        decode_steps=steps,
        decode_flops=rows * (plain.per_position + plain.per_supervised_token),
        decode_bytes=weights + unpacked,
        fixed_bytes=_process(device)
        + weights
        + 16 * trained,  # float32 weights, gradients and Adam's two
        activation_bytes=_activations(trainable, train, recipe, lengths, low, device)
        if trained
        else _chunk(recipe, device),
        disk_bytes=4
        * trained
        * (1 + 2 * 3),  # the weights, and two checkpoints of weights and Adam's two
        flops_per_token=each if trained else None,
        notes=_notes(recipe, name, lengths, device),
    )


def meta_model(recipe: ChatRecipe, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """The model's structure on the meta device. Raises `UserError` or `ValueError` where it cannot be."""
    place = loading.resolve_model_path(recipe.model)
    config = AutoConfig.from_pretrained(place, revision=recipe.revision)
    with torch.device("meta"):
        chosen = loading.pick_attention(config.model_type, recipe.attention, device)
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=chosen
        ).eval()


def weight_bytes(recipe: ChatRecipe, model: torch.nn.Module, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the base's weights in memory, and of those that one step of writing unpacks and reads again."""
    if recipe.quantize != "none":
        return quantization.estimate_bytes(model, dtype.itemsize)
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize, 0


def _notes(
    recipe: ChatRecipe, name: str, lengths: np.ndarray, device: torch.device
) -> tuple[str, ...]:
    """What works, but not as one might think."""
    notes = []
    by_blocks = (
        device.type == "cuda"
        and loading.pick_attention("", recipe.attention, device) == flex_attention.NAME
    )
    if (
        recipe.budget.gradient_checkpointing
        and recipe.methods[name].kind in NO_CHECKPOINTING
        and not by_blocks
    ):
        notes.append(
            "trains without gradient checkpointing: transformers drops the cache, and the prefix with it"
        )
    long = int((lengths > recipe.budget.micro_batch_tokens).sum())
    if long:
        notes.append(f"{long} rows are longer than micro_batch_tokens and will stand alone")
    return tuple(notes)


def _decoding(recipe: ChatRecipe, data: ChatData) -> tuple[float, float]:
    """Steps of writing in one run, and rows in each, on average."""
    settings = recipe.generation
    asked = len(data.questions) + min(settings.num_test_answers, data.size("test"))
    kinds = [(asked, settings.max_new_tokens)]
    if recipe.reading:
        kinds.append((len(data.reading), recipe.reading.max_new_tokens))
    steps = sum(-(-count // settings.batch_rows) * most for count, most in kinds)
    return steps, sum(count * most for count, most in kinds) / max(1, steps)


def _passages(plain: FlopCount, data: ChatData) -> float:
    rows = [row for passages in data.forgetting.values() for row in passages.rows]
    lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
    return plain.total(lengths, float(sum(row.supervised.sum() for row in rows)), 0) if rows else 0.0


def _activations(
    trainable: TrainableChatModel,
    work: FlopCount,
    recipe: ChatRecipe,
    lengths: np.ndarray,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Bytes kept for the backward pass of the largest micro-batch, as the shape of a gated block tells them."""
    config = trainable.base.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = head * (4 * config.num_attention_heads + 4 * config.num_key_value_heads)
    block = 6 * config.hidden_size + heads + 4 * config.intermediate_size
    if recipe.budget.gradient_checkpointing:
        block = config.hidden_size
    deep = sum(
        each > 4 * config.num_attention_heads * head for each, _ in work.per_visible_key
    )  # layers that are gone back through
    places = max(recipe.budget.micro_batch_tokens, int(lengths.max()))
    logits = min(
        _chunk(recipe, device), places * config.vocab_size * dtype.itemsize
    )  # their gradient lies where they were
    return places * block * deep * dtype.itemsize + logits


def _chunk(recipe: ChatRecipe, device: torch.device) -> int:
    """Bytes of logits that the loss makes at a time."""
    return LARGE_CHUNK if device.type == "cuda" and recipe.memory == "normal" else SMALL_CHUNK


def _process(device: torch.device) -> int:
    """What the program itself takes where its memory is the device's."""
    import psutil

    return psutil.Process().memory_info().rss if device.type == "cpu" else 0
