"""Training on a CPU: tarazu's whole loop against the plain peft loop, on the demo's model and rows.

    python -m benchmarks.cpu                       # recipes/demo.yaml, its methods, a few minutes

Both start from the same weights and take the same rows at the same steps with the same AdamW, rate and clipping; so every
step's loss must be the same, and that is checked. The plain loop pads a step's rows on the right into one batch and asks the
model for all logits, as notebooks do; tarazu is `engine.loop.fit` as a run has it, with its event log. They run in turns.
"""

from __future__ import annotations

from benchmarks import common  # first: its clock starts at its import

# isort: split

import argparse
import gc
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import plain_loop

CLOSE = 2e-3  # nats: float32 sums in another order, grown over a few steps of training


class Steps(NamedTuple):
    """Of one training: seconds, loss and real tokens of each step."""

    seconds: list[float]
    losses: list[float]
    tokens: list[int]


class Study:
    """A recipe's model and rows, prepared once, cut to `steps` steps without a schedule."""

    def __init__(self, path: str, steps: int, folder: Path, overrides: list[str] = ()):
        import torch

        from tarazu.chat.task import Chat
        from tarazu.engine.row_sampler import RowSampler
        from tarazu.recipe import schema
        from tarazu.storage.run_folder import StudyDir

        plain = [
            "budget.schedule=constant",
            "budget.warmup_ratio=0",
            "budget.validation_rows=1",
            "budget.evaluate_every=1000000000",
            "device=cpu",
        ]
        self.recipe = schema.load(path, [*plain, *overrides])
        self.folder, self.task, self.device = StudyDir(folder), Chat(), torch.device("cpu")
        self.data = self.task.prepare(self.recipe, self.folder, self.device)
        self.seed = self.recipe.seeds[0]
        order = RowSampler(self.data.size("train"), self.recipe.budget.batch_rows, self.seed)
        self.rows = [order.rows_of_step(step) for step in range(steps)]
        lengths = self.data.store.lengths("train")
        self.tokens = [int(sum(lengths[row] for row in rows)) for rows in self.rows]
        self.recipe.budget.tokens, self.recipe.budget.epochs = sum(self.tokens), None
        self.turn = 0
        self._built: tuple[str, Any, dict] | None = None

    def build(self, name: str) -> Any:
        """The method's model in its first state; loaded once, and set back for every training."""
        import torch

        if self._built is None or self._built[0] != name:
            self._built = None  # the model before may go
            trainable = self.task.build(self.recipe, name, self.data, self.seed, self.device)
            self._built = (
                name,
                trainable,
                {
                    key: parameter.detach().clone()
                    for key, parameter in trainable.trainable().items()
                },
            )
        _, trainable, first = self._built
        with torch.no_grad():
            for key, parameter in trainable.trainable().items():
                parameter.copy_(first[key])
        return trainable

    def ours(self, name: str) -> Steps:
        """One training by tarazu's own loop, read from the event log it leaves."""
        from tarazu.engine import trainer
        from tarazu.engine.ledger import Ledger
        from tarazu.engine.signals import StopSignals

        self.turn += 1
        run, method = self.folder.run(name, self.turn), self.recipe.methods[name]
        with StopSignals(str(self.folder.path)) as stop:
            trainer.train(
                self.task,
                self.build(name),
                self.data,
                self.recipe,
                method,
                run,
                self.seed,
                Ledger(self.device),
                stop,
                sampled=False,
            )
        events = [event for event in run.read_jsonl("events.jsonl") if event["event"] == "step"]
        tokens = [
            after["tokens"] - before
            for before, after in zip([0, *(e["tokens"] for e in events)], events, strict=False)
        ]
        return Steps([e["seconds"] for e in events], [e["loss"] for e in events], tokens)

    def theirs(self, name: str) -> Steps:
        """The same training by the plain loop: the model's own forward (peft's, for a soft prompt), full logits."""
        import torch

        from tarazu.chat.model.batching import TokenizedRow

        trainable, out = self.build(name), Steps([], [], [])
        model = trainable.module.train()
        trained = list(trainable.trainable().values())
        optimizer = torch.optim.AdamW(
            trained, lr=trainable.learning_rate, weight_decay=self.recipe.methods[name].weight_decay
        )
        for numbers in self.rows:
            rows = [TokenizedRow(*self.data.store.row("train", i)) for i in numbers]
            losses: list[float] = []

            def step(rows=rows, losses=losses):
                losses.append(
                    plain_loop.train_step(
                        model,
                        optimizer,
                        plain_loop.padded(rows, "cpu"),
                        autocast=False,
                        clip=self.recipe.budget.max_grad_norm,
                    )
                )

            out.seconds.append(common.timed(step))
            out.losses.append(losses[0])
            out.tokens.append(sum(len(row.ids) for row in rows))
        return out


def measure(study: Study, name: str, repeats: int, warm: int) -> list[dict]:
    """One record of ours and one of the plain loop's for one method. Raises `SystemExit` where losses or tokens differ."""
    contenders = {"tarazu": study.ours, "plain peft loop": study.theirs}
    done: dict[str, list[Steps]] = {who: [] for who in contenders}
    for turn in range(repeats):
        for who in list(contenders)[:: -1 if turn % 2 else 1]:
            done[who].append(contenders[who](name))
            gc.collect()
    pairs = list(zip(*done.values(), strict=True))
    if any(own.tokens != peer.tokens for own, peer in pairs):
        raise SystemExit(f"{name}: the two did not train on the same rows")
    apart = max(
        abs(a - b) for own, peer in pairs for a, b in zip(own.losses, peer.losses, strict=True)
    )
    ratios = [
        b / a
        for own, peer in pairs
        for a, b in zip(own.seconds[warm:], peer.seconds[warm:], strict=True)
    ]
    setting = f"{study.recipe.budget.batch_rows} rows a step, float32"
    records = [
        common.record(
            "cpu",
            who,
            setting,
            str(study.recipe.model),
            group=name,
            loss=runs[0].losses,
            tokens_per_second=common.spread(
                [
                    t / s
                    for one in runs
                    for t, s in zip(one.tokens[warm:], one.seconds[warm:], strict=True)
                ]
            ),
        )  # fmt: skip
        for who, runs in done.items()
    ]
    records[0] |= {"ratio": common.spread(ratios), "largest_loss_difference": apart}
    return records


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--recipe", default="recipes/demo.yaml")
    asked.add_argument("--methods", nargs="*", help="default: all that the recipe trains")
    asked.add_argument("--steps", type=int, default=3)
    asked.add_argument(
        "--warm",
        type=int,
        default=1,
        help="steps at the start of each training that are not measured",
    )
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument(
        "--set", nargs="*", default=[], help="changes of the recipe, as in `tarazu run`"
    )
    asked.add_argument("--out", type=Path, default=common.RESULTS / "cpu-demo.json")
    args = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Study(args.recipe, args.steps, Path(folder), args.set)
        names = args.methods or [
            name for name, method in study.recipe.methods.items() if method.kind != "base"
        ]
        records = []
        for name in names:
            records += measure(study, name, args.repeats, args.warm)
            common.write(args.out, records)
            own = records[-2]
            print(
                f"{name}: {own['ratio']['median']:.2f} times the plain loop, losses within {own['largest_loss_difference']:.1e}",
                flush=True,
            )
    apart = {own["group"]: own["largest_loss_difference"] for own in records[::2]}
    if wrong := {name: by for name, by in apart.items() if not by < CLOSE}:
        raise SystemExit(f"losses differ from the plain loop's: {wrong}")


if __name__ == "__main__":
    main()
