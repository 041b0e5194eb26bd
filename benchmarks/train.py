"""Measure tarazu's own training loop on a shape with random weights and random rows.

    python -m benchmarks.train --shape gemma-2-2b --method lora
    python -m benchmarks.train --method layers --checkpointing

It is the engine as users run it. Rows and the counting of tokens are those of the peers. `--plain`
turns the fast path off. `--profile FILE` writes where the time of the GPU goes.
"""

from __future__ import annotations

from benchmarks import common  # first: its clock starts at its import

# isort: split

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks import exactness, shapes
from torch.profiler import ProfilerActivity, profile

PROFILED_PASSES = 4
PASSES_PER_STEP = 3  # about; the profile starts after the passes of the warm-up steps
METHODS = ("prompt_tuning", "prefix_tuning", "p_tuning", "lora", "rslora", "dora", "loha", "layers")


class RowsInMemory:
    """Rows with the methods of `chat.data.dataset.ChatDataset` that training uses."""

    def __init__(self, rows: list[shapes.PlainRow]):
        self.rows = rows

    def size(self, split: str) -> int:
        """Number of rows of the split."""
        return len(self.rows) if split == "train" else 1

    def row(self, _split: str, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (T,) of a row, and which of them carry loss (T,)."""
        return self.rows[i].ids, self.rows[i].supervised

    def answer_bytes(self, *_: Any) -> int:
        """A placeholder: nothing here is measured in bytes."""
        return 1


class WordTokenizer:
    """Replaces a tokenizer where a soft prompt starts from a text: one token for each word."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + sum(word.encode()) % 400 for word in text.split()]}

    def __len__(self) -> int:
        return 400


def make_recipe(args: argparse.Namespace) -> Any:
    """The recipe that a user would write for this measurement."""
    from tarazu.chat.settings import ChatRecipe

    tokens = int((args.warm + args.steps) * args.batch_rows * shapes.MEAN_LENGTH)
    method = {"rank": args.rank} if args.method == "rslora" and args.rank else {}
    return ChatRecipe.model_validate(
        {
            "task": "chat",
            "model": args.shape,
            "data": {"source": "benchmark", "max_length": shapes.MAX_LENGTH},
            "methods": {args.method: method},
            "budget": {
                "tokens": tokens,
                "batch_rows": args.batch_rows,
                "micro_batch_tokens": args.micro_batch_tokens,
                "evaluate_every": 10**9,
                "validation_rows": 1,
                "gradient_checkpointing": args.checkpointing,
            },
            "fast": not args.plain,
            "memory": args.memory,
            "quantize": args.quantize,
            "attention": args.attention,
            "forgetting": None,
            "questions": None,
        }
    )


def prepare(args: argparse.Namespace, recipe: Any) -> tuple[Any, Any, int]:
    """Build the model on the device, and the rows.

    Returns:
        The `TrainableChatModel`, the `ChatData`, and the number of the base model's weights.
    """
    import torch

    from tarazu.chat.model import flex_attention
    from tarazu.chat.model.building import wrap_model
    from tarazu.chat.prepared_data import ChatData

    device = "cuda" if torch.cuda.is_available() else "cpu"
    attention = "sdpa" if args.attention == "sdpa" else flex_attention.NAME
    base = shapes.build(args.shape, device, attention).eval()
    num_parameters = shapes.parameters(base)
    if args.quantize != "none":
        base = quantized(base, args.quantize)
    rows = RowsInMemory(shapes.rows(args.rows, args.seed, base.config.vocab_size))
    data = ChatData(rows, None, WordTokenizer(), [], packed=True)
    torch.manual_seed(args.seed)
    return wrap_model(recipe, args.method, base, WordTokenizer()), data, num_parameters


def quantized(model: Any, quantize: str) -> Any:
    """The model in 4 bits as a user has it: written to a folder, and quantized as it is loaded."""
    from tarazu.chat.model import loading

    dtype, device = model.dtype, model.device
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        return loading.load_model(folder, None, dtype, device, "flex", quantize).eval()


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train with the engine and read its event log.

    Returns:
        "parameters": weights of the base model; "steps": the events of the steps;
        "first_step_seconds"; "total_seconds"; "code_paths"; "ledger"; "exactness": see
        `exactness.compared`, or None.
    """
    import torch

    from tarazu.chat.task import Chat
    from tarazu.engine import trainer
    from tarazu.engine.ledger import Ledger
    from tarazu.engine.signals import StopSignals
    from tarazu.storage.run_folder import StudyDir

    recipe, task = make_recipe(args), Chat()
    model, data, num_parameters = prepare(args, recipe)
    ledger = Ledger(torch.device(model.base.device.type))
    watched_task = WatchedTask(task, args)
    with tempfile.TemporaryDirectory() as folder, StopSignals(folder) as stop:
        run = StudyDir(Path(folder)).run(args.method, args.seed)
        run.path.mkdir(parents=True)
        trainer.train(
            watched_task,
            model,
            data,
            recipe,
            recipe.methods[args.method],
            run,
            args.seed,
            ledger,
            stop,
            sampled=False,
        )
        watched_task.end_profile()  # a short training ends before the last profiled pass
        events = run.read_jsonl("events.jsonl")
    measured = {
        "parameters": num_parameters,
        "steps": [event for event in events if event["event"] == "step"],
        "first_step_seconds": watched_task.first_step_seconds,
        "total_seconds": common.since_start(),
        "code_paths": task.code_paths(model, data),
        "ledger": ledger.as_json(),
        "exactness": None,
    }
    if args.check and args.quantize == "none":
        measured["exactness"] = exactness.compared(
            task, model, data, recipe, WordTokenizer(), args.micro_batch_tokens
        )
    return measured


class WatchedTask:
    """A task that notes the end of the first step, and profiles some of the measured passes."""

    def __init__(self, task: Any, args: argparse.Namespace):
        self.task, self.args = task, args
        self.first_step_seconds: float | None = None  # since the start of the process
        self.num_collated = 0  # training steps whose rows are collated
        self.num_passes = 0
        self.profiler: profile | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def collate(self, model: Any, data: Any, split: str, rows: list[int], limit: int) -> list:
        """Collate as the task does. See `engine.task.Task`."""
        self.num_collated += split == "train"
        # Batches are prefetched: the third step is collated when the second begins.
        if self.num_collated == 3 and self.first_step_seconds is None:
            common.synchronize()
            self.first_step_seconds = common.since_start()
        return self.task.collate(model, data, split, rows, limit)

    def loss(self, model: Any, batch: Any) -> Any:
        """Compute the loss as the task does, and start or end the profile. See `engine.task`."""
        self.num_passes += 1
        first_profiled = PASSES_PER_STEP * self.args.warm
        if self.args.profile and self.num_passes == first_profiled:
            self.profiler = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])
            self.profiler.__enter__()
        elif self.num_passes == first_profiled + PROFILED_PASSES:
            self.end_profile()
        return self.task.loss(model, batch)

    def end_profile(self) -> None:
        """Write the table of kernels, if a profile is running."""
        if self.profiler is None:
            return
        self.profiler.__exit__(None, None, None)
        table = self.profiler.key_averages().table(
            sort_by="self_device_time_total", row_limit=60, max_name_column_width=110
        )
        self.args.profile.write_text(table)
        self.profiler = None


def result(
    args: argparse.Namespace, measured: dict[str, Any], matmul_flops: float | None
) -> dict[str, Any]:
    """The record of one run. See `train` for `measured`, `common.matmul_rate` for the rest."""
    steps = measured["steps"]
    speed = common.spread([step["tokens_per_second"] for step in steps[args.warm :]])
    options = [
        *["checkpointing"] * args.checkpointing,
        *["memory: low"] * (args.memory == "low"),
        *["4-bit base"] * (args.quantize == "4bit"),
    ]
    paths = measured["code_paths"]
    setting = ["packed", paths["attention"], paths["layers"], *options]
    setting.append(f"{args.micro_batch_tokens} tokens a pass")
    allocated = measured["ledger"]["train_memory"]["allocated"] or 0
    return common.record(
        "train",
        "tarazu",
        ", ".join(setting),
        args.shape,
        group=", ".join([args.method, *options]),
        tokens_per_second=speed,
        peak_gib=allocated / 2**30 or common.peak_gib(),
        first_step_seconds=measured["first_step_seconds"],
        bound_share=common.bound_share(
            speed and speed["median"], measured["parameters"], matmul_flops
        ),
        matmul_flops=matmul_flops,
        parameters=measured["parameters"],
        loss=[step["loss"] for step in steps],
        warm_steps=args.warm,
        total_seconds=measured["total_seconds"],
        exactness=measured["exactness"],
        step_seconds=[step["seconds"] for step in steps],
        step_tokens=[step["tokens_per_second"] * step["seconds"] for step in steps],
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shape", choices=list(shapes.SHAPES), default="gemma-2-2b", help="the model")
    add("--method", choices=METHODS, default="lora", help="the fine-tuning method")
    add("--out", type=Path, help="the JSON file to write")
    add(
        "--warm",
        type=int,
        default=14,
        help="warm-up steps, not measured; CUDA graphs of each packed width are captured in them",
    )
    add("--steps", type=int, default=16, help="measured steps")
    add(
        "--micro-batch-tokens",
        type=int,
        default=8192,
        help="maximum number of tokens in a forward pass",
    )
    add("--batch-rows", type=int, default=32, help="rows in an optimizer step")
    add("--checkpointing", action="store_true", help="gradient checkpointing")
    add(
        "--memory",
        choices=("normal", "low"),
        default="normal",
        help="low: checkpointing, one row a pass, small chunks of the loss",
    )
    add(
        "--quantize",
        choices=("none", "4bit"),
        default="none",
        help="4bit: the frozen linear layers in NF4",
    )
    add(
        "--attention",
        choices=("auto", "flash", "flex", "sdpa"),
        default="auto",
        help="as in a recipe",
    )
    add("--plain", action="store_true", help="turn the fast path off")
    add("--profile", type=Path, help="write a table of the kernels to this file")
    add("--rank", type=int, help="rank of rslora")
    add(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="then compare loss and gradients with float32, row by row",
    )
    add("--rows", type=int, default=2048, help="rows of the data")
    add("--seed", type=int, default=0, help="seed of rows, weights and order")
    args = parser.parse_args()
    if args.memory == "low":
        args.micro_batch_tokens = min(args.micro_batch_tokens, shapes.MAX_LENGTH)
    if args.out is None:
        suffix = "-checkpointing" * args.checkpointing
        args.out = common.RESULTS / f"train-{args.shape}-tarazu-{args.method}{suffix}.json"
    return args


def main() -> None:
    args = arguments()
    measured = train(args)
    written = result(args, measured, common.matmul_rate())
    common.write(args.out, written)
    print(
        f"{args.shape} {args.method}: {written['tokens_per_second']} tokens/s, "
        f"peak {written['peak_gib'] or 0:.1f} GiB, "
        f"first step {written['first_step_seconds']:.1f} s, "
        f"{written['bound_share'] or 0:.2f} of the bound, {written['exactness']}"
    )


if __name__ == "__main__":
    main()
