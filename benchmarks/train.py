"""tarazu's own training loop on a shape with random weights: the engine as users run it, on rows made here.

    python -m benchmarks.train --shape gemma-2-2b --method lora
    python -m benchmarks.train --method layers --checkpointing

Rows, their order within a step and the count of tokens are those of the peers. `--plain` turns the fast path off.
`--profile FILE` writes where the GPU's time goes.
"""

from __future__ import annotations

from benchmarks import common  # first: its clock starts at its import

# isort: split

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import exactness, shapes
from torch.profiler import ProfilerActivity, profile

PROFILED = 4  # passes
METHODS = (
    "base",
    "prompt_tuning",
    "prefix_tuning",
    "p_tuning",
    "lora",
    "rslora",
    "dora",
    "loha",
    "layers",
)


class Rows:
    """Rows in memory, as `chat.store.Store` gives them."""

    def __init__(self, rows: list):
        self.rows = rows

    def size(self, split: str) -> int:
        return len(self.rows) if split == "train" else 1

    def row(self, _split: str, i: int) -> tuple:
        return self.rows[i].ids, self.rows[i].supervised

    def answer_bytes(self, *_) -> int:
        return 1


def recipe_of(args: argparse.Namespace) -> Any:
    """The recipe that a user would write for this measurement."""
    from tarazu.chat.settings import ChatRecipe

    tokens = int((args.warm + args.steps) * args.batch_rows * shapes.MEAN)
    return ChatRecipe.model_validate({
        "task": "chat", "model": args.shape, "data": {"source": "benchmark", "max_length": shapes.LONGEST}, "methods": {args.method: {"rank": args.rank} if args.method == "rslora" and args.rank else {}},
        "budget": {
            "tokens": tokens, "batch_rows": args.batch_rows, "micro_batch_tokens": args.limit, "evaluate_every": 10**9, "validation_rows": 1,
            "gradient_checkpointing": args.checkpointing,
        },
        "fast": not args.plain, "memory": args.memory, "quantize": args.quantize, "attention": args.attention, "forgetting": None, "questions": None,
    })  # fmt: skip


def prepared(args: argparse.Namespace, recipe: Any) -> tuple:
    """The model and its rows, on the GPU."""
    import torch

    from tarazu.chat.model import flex_attention
    from tarazu.chat.model.building import wrap_model
    from tarazu.chat.prepared_data import ChatData
    from tarazu.chat.task import Chat

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = shapes.build(
        args.shape, device, "sdpa" if args.attention == "sdpa" else flex_attention.NAME
    ).eval()
    out = {"parameters": shapes.parameters(model)}
    if args.quantize != "none":
        model = packed(model, args.quantize)
    store = Rows(shapes.rows(args.rows, args.seed, model.config.vocab_size))
    data = ChatData(store, None, Words(), [], packed=True)
    task = Chat()
    torch.manual_seed(args.seed)
    return task, wrap_model(recipe, args.method, model, Words()), data, out


def packed(model: Any, form: str) -> Any:
    """The model as a user has it in 4 bits: written to a folder, and packed as it is read."""
    from tarazu.chat.model import loading

    dtype, device = model.dtype, model.device
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        return loading.load_model(folder, None, dtype, device, "flex", form).eval()


class Words:
    """Stands for a tokenizer where a soft prompt begins from a text: one token for each word."""

    def __call__(self, text: str, **_) -> dict:
        return {"input_ids": [3 + sum(word.encode()) % 400 for word in text.split()]}

    def __len__(self) -> int:
        return 400


def train(args: argparse.Namespace) -> dict:
    """Runs the engine's `fit` and reads its event log."""
    import torch

    from tarazu.engine.ledger import Ledger
    from tarazu.engine.signals import StopSignals
    from tarazu.engine.trainer import train as fit
    from tarazu.storage.run_folder import StudyDir

    recipe = recipe_of(args)
    task, trainable, data, out = prepared(args, recipe)
    ledger = Ledger(torch.device(trainable.base.device.type))
    watch = Watch(task, args)
    with tempfile.TemporaryDirectory() as folder, StopSignals(folder) as stop:
        run = StudyDir(Path(folder)).run(args.method, args.seed)
        run.path.mkdir(parents=True)
        fit(
            watch,
            trainable,
            data,
            recipe,
            recipe.methods[args.method],
            run,
            args.seed,
            ledger,
            stop,
            sampled=False,
        )
        events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    out |= {
        "steps": steps,
        "first": watch.first,
        "code_paths": task.code_paths(trainable, data),
        "ledger": ledger.as_json(),
        "whole": common.since_start(),
    }
    return {
        **out,
        "exactness": exactness.compared(task, trainable, data, recipe, Words(), args.limit)
        if args.check and args.quantize == "none"
        else None,
    }


class Watch:
    """The task, with an eye on when the first step was done, and a profiler for some of the measured passes."""

    def __init__(self, task: Any, args: argparse.Namespace):
        self.task, self.args, self.first, self.laid_out, self.passes, self.profiler = (
            task,
            args,
            None,
            0,
            0,
            None,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def collate(self, trainable, data, split, rows, limit):
        self.laid_out += split == "train"
        if (
            self.laid_out == 3 and self.first is None
        ):  # the third step is laid out when the second begins
            common.synchronize()
            self.first = common.since_start()
        return self.task.collate(trainable, data, split, rows, limit)

    def loss(self, trainable, batch):
        self.passes += 1
        if self.args.profile and self.passes == 3 * self.args.warm:
            self.profiler = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])
            self.profiler.__enter__()
        elif self.profiler and self.passes == 3 * self.args.warm + PROFILED:
            self.profiler.__exit__(None, None, None)
            table = self.profiler.key_averages().table(
                sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=110
            )
            self.args.profile.write_text(table)
            self.profiler = None
        return self.task.loss(trainable, batch)


def result(args: argparse.Namespace, measured: dict, rate: float | None) -> dict:
    """The record of one run."""
    kept = measured["steps"][args.warm :]
    speed = common.spread([step["tokens_per_second"] for step in kept])
    setting = [
        "packed",
        measured["code_paths"]["attention"],
        measured["code_paths"]["layers"],
        *["checkpointing"] * args.checkpointing,
        *["memory: low"] * (args.memory == "low"),
        *["4-bit base"] * (args.quantize == "4bit"),
        f"{args.limit} tokens a pass",
    ]
    return common.record(
        "train", "tarazu", ", ".join(setting), args.shape, group=args.method + ", checkpointing" * args.checkpointing + ", memory: low" * (args.memory == "low") + ", 4-bit base" * (args.quantize == "4bit"),
        tokens_per_second=speed, peak_gib=(measured["ledger"]["train_memory"]["allocated"] or 0) / 2**30 or common.peak_gib(), first_step_seconds=measured["first"],
        bound_share=common.bound_share(speed and speed["median"], measured["parameters"], rate), matmul_flops=rate, parameters=measured["parameters"],
        loss=[step["loss"] for step in measured["steps"]], warm_steps=args.warm, whole_seconds=measured["whole"], exactness=measured["exactness"], step_seconds=[step["seconds"] for step in measured["steps"]], step_tokens=[step["tokens_per_second"] * step["seconds"] for step in measured["steps"]],
    )  # fmt: skip


def arguments() -> argparse.Namespace:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--shape", choices=list(shapes.SHAPES), default="gemma-2-2b")
    asked.add_argument("--method", choices=METHODS, default="lora")
    asked.add_argument("--out", type=Path, help="the JSON file to write")
    asked.add_argument(
        "--warm",
        type=int,
        default=14,
        help="steps that are not measured: in the first dozen each packed width is recorded",
    )
    asked.add_argument("--steps", type=int, default=16, help="steps that are")
    asked.add_argument("--limit", type=int, default=8192, help="tokens in a forward pass")
    asked.add_argument("--batch-rows", type=int, default=32)
    asked.add_argument("--checkpointing", action="store_true")
    asked.add_argument(
        "--memory",
        choices=("normal", "low"),
        default="normal",
        help="small: checkpointing, a row a pass, small chunks of the loss",
    )
    asked.add_argument(
        "--quantize",
        choices=("none", "4bit"),
        default="none",
        help="the frozen linear layers in NF4",
    )
    asked.add_argument(
        "--attention",
        choices=("auto", "flash", "flex", "sdpa"),
        default="auto",
        help="as in a recipe",
    )
    asked.add_argument("--plain", action="store_true", help="without the fast path")
    asked.add_argument("--profile", type=Path, help="write a table of the kernels here")
    asked.add_argument("--rank", type=int)
    asked.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="then compare loss and gradients with float32, row by row",
    )
    asked.add_argument("--rows", type=int, default=2048)
    asked.add_argument("--seed", type=int, default=0)
    args = asked.parse_args()
    args.limit = min(args.limit, shapes.LONGEST) if args.memory == "low" else args.limit
    args.out = (
        args.out
        or common.RESULTS
        / f"train-{args.shape}-tarazu-{args.method}{'-checkpointing' * args.checkpointing}.json"
    )
    return args


def main() -> None:
    args = arguments()
    measured = train(args)
    common.write(args.out, result(args, measured, common.matmul_rate()))
    made = json.loads(args.out.read_text())
    peak = made["peak_gib"] or 0
    print(
        f"{args.shape} {args.method}: {made['tokens_per_second']} tok/s, peak {peak:.1f} GiB, first step {made['first_step_seconds']:.1f} s, share {made['bound_share'] or 0:.2f}, {made['exactness']}"
    )


if __name__ == "__main__":
    main()
