"""TRL's SFTTrainer on one of our shapes and its rows, at its best setting. A separate process.

    python -m benchmarks.peers.trl_sft --shape gemma-2-2b --pad-to 16384 --out trl.json

Its best setting (TRL 1.16): rows packed best-fit into 8 x 2,048, every batch padded to one width,
flex attention, Liger's layer kernels, bfloat16, no checkpointing. The rows come tokenized with
labels, and TRL uses every label, so loss falls on the same tokens as ours. Tokens are counted as
ours are: without padding.
"""

from __future__ import annotations

from benchmarks import common  # first: its clock starts at its import

# isort: split

import argparse
import contextlib
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

from benchmarks import shapes


class Watch:
    """Time, tokens and loss of each step, by a callback of the trainer and a wrapped collator."""

    def __init__(self, seconds: float | None):
        self.limit = seconds
        self.first: float | None = None
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.losses: list[float] = []
        # Tokens of batches that are collated but not trained on: the loader is one ahead.
        self._pending: deque[int] = deque()

    def collator(self, inner: Any) -> Any:
        """`inner`, counting the tokens of the rows before it pads or packs them."""

        def collate(examples: list[dict]) -> Any:
            self._pending.append(sum(len(example["input_ids"]) for example in examples))
            return inner(examples)

        return collate

    def callback(self) -> Any:
        """The callback. It is defined here because its base class needs transformers."""
        from transformers import TrainerCallback

        watch = self

        class Ends(TrainerCallback):
            def on_step_end(self, args, state, control, **_):
                common.synchronize()
                watch.ends.append(common.since_start())
                watch.first = watch.first or watch.ends[0]
                watch.tokens.append(watch._pending.popleft())
                if watch.limit and watch.ends[-1] > watch.limit:
                    control.should_training_stop = True

            def on_log(self, args, state, control, logs=None, **_):
                if logs and "loss" in logs:
                    watch.losses.append(float(logs["loss"]))

        return Ends()

    def rates(self, warm: int) -> list[float]:
        """Tokens per second of each step after the first `warm`, from step end to step end."""
        pairs = zip(self.ends, self.ends[1:], self.tokens[1:], strict=False)
        return [tokens / (end - before) for before, end, tokens in pairs][max(0, warm - 1) :]


def tokenizer() -> Any:
    """A tokenizer of special tokens only: the trainer needs one, the rows are tokenized already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}, unk_token="<unk>")
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def trainer(args: argparse.Namespace, watch: Watch, folder: str) -> Any:
    """The `SFTTrainer` with the settings of `args`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    gpu = torch.cuda.is_available()
    model = shapes.build(args.shape, "cuda" if gpu else "cpu", args.attention)
    args.parameters = shapes.parameters(model)
    plain_rows = shapes.rows(args.rows, args.seed, model.config.vocab_size, args.max_length)
    settings = SFTConfig(
        output_dir=folder,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=args.seed,
        max_steps=args.warm + args.steps,
        per_device_train_batch_size=args.batch,
        max_length=args.max_length,
        packing=not args.padded,
        pad_to_multiple_of=args.pad_to,
        gradient_checkpointing=args.checkpointing,
        use_liger_kernel=args.liger,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        bf16=gpu,
        use_cpu=not gpu,
    )
    adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    rows = Dataset.from_dict(shapes.labelled(plain_rows))
    sft_trainer = SFTTrainer(
        model,
        settings,
        train_dataset=rows,
        processing_class=tokenizer(),
        peft_config=adapters,
        callbacks=[watch.callback()],
    )
    sft_trainer.data_collator = watch.collator(sft_trainer.data_collator)
    return sft_trainer


def result(args: argparse.Namespace, watch: Watch, stopped: str | None, rate: float | None) -> dict:
    """The record of what was measured so far."""
    speed = common.spread(watch.rates(args.warm))
    parts = ["padded" if args.padded else "packed", args.attention.removesuffix("_attention")]
    parts += (
        ["Liger kernels"] * bool(args.liger)
        + ["checkpointing"] * args.checkpointing
        + [f"{args.batch} x {args.max_length}"]
    )
    parts += [f"padded to a multiple of {args.pad_to}"] if args.pad_to else []
    return common.record(
        "train",
        f"TRL {common.versions().get('trl')}",
        ", ".join(parts),
        args.shape,
        group="lora, checkpointing" if args.checkpointing else "lora",
        tokens_per_second=speed,
        peak_gib=common.peak_gib(),
        first_step_seconds=watch.first,
        bound_share=common.bound_share(speed and speed["median"], args.parameters or 0, rate),
        matmul_flops=rate,
        parameters=args.parameters,
        loss=watch.losses,
        step_ends=watch.ends,
        step_tokens=watch.tokens,
        warm_steps=args.warm,
        stopped=stopped,
        supervised="the rows' own labels, as in tarazu",
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=list(shapes.SHAPES), default="gemma-2-2b")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument(
        "--warm", type=int, default=6, help="steps that are not measured: TRL compiles in them"
    )
    parser.add_argument("--steps", type=int, default=12, help="steps that are")
    parser.add_argument(
        "--seconds",
        type=float,
        help="stop at the end of the first step after so many seconds of the process",
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument(
        "--attention",
        default="flex_attention",
        help="transformers' name: flex_attention, sdpa, eager, ...",
    )
    parser.add_argument("--padded", action="store_true", help="one row a line, as by TRL's default")
    parser.add_argument("--pad-to", type=int, help="TRL's pad_to_multiple_of")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument(
        "--liger",
        action=argparse.BooleanOptionalAction,
        help="Liger's layer kernels; default: on a GPU",
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out = (
        args.out
        or common.RESULTS
        / f"train-{args.shape}-trl-{args.attention}{'-checkpointing' * args.checkpointing}.json"
    )
    args.parameters = None
    return args


def main() -> None:
    args = arguments()
    import torch

    if args.liger is None:
        args.liger = torch.cuda.is_available()
    watch = Watch(args.seconds)

    def save(stopped: str | None, rate: float | None = None) -> None:
        common.write(args.out, result(args, watch, stopped, rate))

    with common.saved_when_stopped(save, args.seconds), tempfile.TemporaryDirectory() as folder:
        try:
            # The trainer prints every log; stdout is for the result.
            with contextlib.redirect_stdout(sys.stderr):
                trainer(args, watch, folder).train()
            stopped = "time limit" if len(watch.ends) < args.warm + args.steps else None
        except torch.OutOfMemoryError:
            stopped = "out of memory"
            torch.cuda.empty_cache()
        save(stopped)  # without the rate first: its product may find no memory
        save(stopped, common.matmul_rate())
    print(args.out)


if __name__ == "__main__":
    main()
