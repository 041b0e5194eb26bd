"""The loop of most notebooks: peft, rows padded on the right, all logits. A separate process.

    python -m benchmarks.peers.plain_loop --shape gemma-2-2b --method prompt_tuning --batch 4

Weights are bfloat16 on a GPU, with the forward pass under autocast. Rows are padded to the longest
of their batch and cut at `--max-length`. `layers` trains the first two and last two decoder blocks,
without peft. Tokens are counted without padding.
"""

from __future__ import annotations

from benchmarks import common  # first: its clock starts at its import

# isort: split

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import shapes

METHODS = ("lora", "rslora", "dora", "loha", "prompt_tuning", "prefix_tuning", "p_tuning", "layers")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NUM_VIRTUAL_TOKENS = 32  # soft-prompt tokens or prefix positions


def with_method(model: Any, method: str, rank: int = 16) -> Any:
    """The model as peft wraps it for a method; `layers` unfreezes its outer blocks."""
    import peft

    if method == "layers":
        model.requires_grad_(False)
        blocks = model.get_decoder().layers
        for block in [*blocks[:2], *blocks[-2:]]:
            block.requires_grad_(True)
        return model
    low_rank = {"r": rank, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    soft = {"num_virtual_tokens": NUM_VIRTUAL_TOKENS, "task_type": "CAUSAL_LM"}
    configs = {
        "lora": lambda: peft.LoraConfig(lora_alpha=32, **low_rank),
        "rslora": lambda: peft.LoraConfig(lora_alpha=32, use_rslora=True, **low_rank),
        "dora": lambda: peft.LoraConfig(lora_alpha=32, use_dora=True, **low_rank),
        "loha": lambda: peft.LoHaConfig(
            # peft expands "all-linear" for LoRA only.
            alpha=32,
            **low_rank | {"target_modules": LINEAR},
        ),
        "prompt_tuning": lambda: peft.PromptTuningConfig(**soft),
        "prefix_tuning": lambda: peft.PrefixTuningConfig(**soft),
        "p_tuning": lambda: peft.PromptEncoderConfig(encoder_hidden_size=256, **soft),
    }
    return peft.get_peft_model(model, configs[method]())


def padded(rows: list, device: str) -> dict[str, Any]:
    """Rows padded on the right to the longest one.

    Args:
        rows: B rows with `ids` and `supervised`.
        device: of the tensors.

    Returns:
        "input_ids", "attention_mask" and "labels", each (B, T).
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row.ids, dtype=torch.long) for row in rows]
    labels = [
        torch.where(torch.tensor(row.supervised), row_ids, -100)
        for row, row_ids in zip(rows, ids, strict=True)
    ]
    columns = (
        pad_sequence(ids, batch_first=True),
        pad_sequence([torch.ones_like(row_ids) for row_ids in ids], batch_first=True),
        pad_sequence(labels, batch_first=True, padding_value=-100),
    )
    return dict(
        zip(
            ("input_ids", "attention_mask", "labels"),
            (column.to(device) for column in columns),
            strict=True,
        )
    )


def steps(rows: list, batch: int) -> Iterator[list]:
    """Yield the rows in their order, `batch` at a time, over and over."""
    while True:
        yield from (rows[i : i + batch] for i in range(0, len(rows) - batch + 1, batch))


def train_step(
    model: Any,
    optimizer: Any,
    inputs: dict[str, Any],
    autocast: bool,
    max_grad_norm: float | None = None,
) -> float:
    """One optimizer step.

    Args:
        model: a causal LM of transformers.
        optimizer: of its trained parameters.
        inputs: see `padded`.
        autocast: run the forward pass under bfloat16 autocast.
        max_grad_norm: norm to which gradients are clipped; None: not clipped.

    Returns:
        Mean loss of the supervised tokens.
    """
    import torch

    with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=autocast):
        loss = model(**inputs).loss
    loss.backward()
    if max_grad_norm:
        torch.nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]], max_grad_norm
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def optimizer_of(model: Any, learning_rate: float) -> Any:
    """AdamW over the trained parameters."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)


class Measured:
    """Rate, loss and time of the steps so far."""

    def __init__(self):
        self.parameters = 0
        self.first: float | None = None
        self.rates: list[float] = []
        self.losses: list[float] = []


def train(args: argparse.Namespace, out: Measured) -> str | None:
    """Train, and add each step to `out`. Returns why the training ended early, or None."""
    import torch

    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    base = shapes.build(args.shape, device, args.attention)
    out.parameters = shapes.parameters(base)
    if args.checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    model = with_method(base, args.method).train()
    optimizer = optimizer_of(model, args.learning_rate)
    batches = steps(
        shapes.rows(args.rows, args.seed, base.config.vocab_size, args.max_length), args.batch
    )
    for step, rows in zip(range(args.warm + args.steps), batches, strict=False):
        losses: list[float] = []
        seconds = common.timed(
            lambda rows=rows, losses=losses: losses.append(
                train_step(model, optimizer, padded(rows, device), gpu)
            )
        )
        out.losses += losses
        out.first = out.first or common.since_start()
        if step >= args.warm:
            out.rates.append(sum(len(row.ids) for row in rows) / seconds)
        if args.seconds and common.since_start() > args.seconds:
            return "time limit" if step + 1 < args.warm + args.steps else None
    return None


def result(
    args: argparse.Namespace, out: Measured, stopped: str | None, rate: float | None
) -> dict:
    """The record of what was measured so far."""
    speed = common.spread(out.rates)
    setting = [
        "padded",
        args.attention,
        *["checkpointing"] * args.checkpointing,
        f"{args.batch} x {args.max_length}",
    ]
    return common.record(
        "train",
        "plain loop" if args.method == "layers" else "plain peft loop",
        ", ".join(setting),
        args.shape,
        group=args.method + ", checkpointing" * args.checkpointing,
        tokens_per_second=speed,
        peak_gib=common.peak_gib(),
        first_step_seconds=out.first,
        bound_share=common.bound_share(speed and speed["median"], out.parameters, rate),
        matmul_flops=rate,
        parameters=out.parameters,
        loss=out.losses,
        warm_steps=args.warm,
        stopped=stopped,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(shapes.SHAPES), default="gemma-2-2b")
    parser.add_argument("--method", choices=METHODS, default="lora")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--warm", type=int, default=4, help="steps that are not measured")
    parser.add_argument("--steps", type=int, default=16, help="steps that are")
    parser.add_argument(
        "--seconds", type=float, help="stop after the first step that ends so late in the process"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument(
        "--attention", default="eager", help="transformers' name: eager, sdpa, flex_attention, ..."
    )
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out = (
        args.out
        or common.RESULTS
        / f"train-{args.shape}-plain-{args.method}{'-checkpointing' * args.checkpointing}.json"
    )
    return args


def main() -> None:
    args, out = arguments(), Measured()

    def save(stopped: str | None, rate: float | None = None) -> None:
        common.write(args.out, result(args, out, stopped, rate))

    import torch

    with common.saved_when_stopped(save, args.seconds):
        try:
            stopped = train(args, out)
        except torch.OutOfMemoryError:
            stopped = "out of memory"
            torch.cuda.empty_cache()
        save(stopped)
        save(stopped, common.matmul_rate())
    print(args.out)


if __name__ == "__main__":
    main()
