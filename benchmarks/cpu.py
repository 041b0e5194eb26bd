"""Training on a CPU: tarazu's own loop against the plain peft loop, on the demo's model and rows.

    python -m benchmarks.cpu                       # recipes/demo.yaml, its methods, a few minutes

Both start from the same weights and take the same rows at the same steps, with the same AdamW,
learning rate and clipping. So every step's loss must be equal, and that is checked. The plain loop
pads a step's rows on the right into one batch and computes all logits, as notebooks do. tarazu runs
`engine.trainer.train` as a run does, with its event log. They run in turns.
"""

from __future__ import annotations

from benchmarks import common  # first: its clock starts at its import

# isort: split

import argparse
import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import plain_loop

# Nats. float32 sums are in another order, and training amplifies the difference.
MAX_LOSS_DIFFERENCE = 2e-3


class Steps(NamedTuple):
    """Seconds, mean loss and number of tokens (without padding) of each step of a training."""

    seconds: list[float]
    losses: list[float]
    tokens: list[int]


class Study:
    """A recipe's model and rows, for trainings of `steps` steps at a constant learning rate."""

    def __init__(self, path: str, steps: int, folder: Path, overrides: Sequence[str] = ()):
        import torch

        from tarazu.chat.task import Chat
        from tarazu.engine.row_sampler import RowSampler
        from tarazu.recipe import schema
        from tarazu.storage.run_folder import StudyDir

        settings = [
            "budget.schedule=constant",
            "budget.warmup_ratio=0",
            "budget.validation_rows=1",
            "budget.evaluate_every=1000000000",
            "device=cpu",
        ]
        self.recipe = schema.load(path, [*settings, *overrides])
        self.folder, self.task, self.device = StudyDir(folder), Chat(), torch.device("cpu")
        self.data = self.task.prepare(self.recipe, self.folder, self.device)
        self.seed = self.recipe.seeds[0]
        sampler = RowSampler(self.data.size("train"), self.recipe.budget.batch_rows, self.seed)
        self.rows = [sampler.rows_of_step(step) for step in range(steps)]
        lengths = self.data.store.lengths("train")
        self.tokens = [int(sum(lengths[row] for row in rows)) for rows in self.rows]
        self.recipe.budget.tokens, self.recipe.budget.epochs = sum(self.tokens), None
        self.num_runs = 0
        self._built: tuple[str, Any, dict] | None = None

    def build(self, name: str) -> Any:
        """The method's model with its initial weights; loaded once, reset for every training."""
        import torch

        if self._built is None or self._built[0] != name:
            self._built = None  # frees the previous model
            trainable = self.task.build(self.recipe, name, self.data, self.seed, self.device)
            self._built = (
                name,
                trainable,
                {
                    key: parameter.detach().clone()
                    for key, parameter in trainable.trainable().items()
                },
            )
        _, trainable, initial = self._built
        with torch.no_grad():
            for key, parameter in trainable.trainable().items():
                parameter.copy_(initial[key])
        return trainable

    def ours(self, name: str) -> Steps:
        """One training by tarazu's own loop, read from its event log."""
        from tarazu.engine import trainer
        from tarazu.engine.ledger import Ledger
        from tarazu.engine.signals import StopSignals

        self.num_runs += 1
        run, method = self.folder.run(name, self.num_runs), self.recipe.methods[name]
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
        """The same training by the plain loop.

        It takes the model's own forward pass (peft's, for a soft prompt) and all logits.
        """
        import torch

        from tarazu.chat.model.batching import TokenizedRow

        trainable, steps = self.build(name), Steps([], [], [])
        model = trainable.module.train()
        trained = list(trainable.trainable().values())
        optimizer = torch.optim.AdamW(
            trained, lr=trainable.learning_rate, weight_decay=self.recipe.methods[name].weight_decay
        )
        for indices in self.rows:
            rows = [TokenizedRow(*self.data.store.row("train", i)) for i in indices]
            losses: list[float] = []

            def step(rows=rows, losses=losses):
                losses.append(
                    plain_loop.train_step(
                        model,
                        optimizer,
                        plain_loop.padded(rows, "cpu"),
                        autocast=False,
                        max_grad_norm=self.recipe.budget.max_grad_norm,
                    )
                )

            steps.seconds.append(common.timed(step))
            steps.losses.append(losses[0])
            steps.tokens.append(sum(len(row.ids) for row in rows))
        return steps


def measure(study: Study, name: str, repeats: int, warm: int) -> list[dict]:
    """Time both on one method.

    Args:
        study: the recipe's model and rows.
        name: the method.
        repeats: trainings of each contender.
        warm: steps at the start of each training that are not measured.

    Returns:
        A record of tarazu, with the ratio of speeds and the largest difference of a loss, and a
        record of the plain loop.

    Raises:
        SystemExit: the two trained on different numbers of tokens.
    """
    contenders = {"tarazu": study.ours, "plain peft loop": study.theirs}
    trainings: dict[str, list[Steps]] = {who: [] for who in contenders}
    for turn in range(repeats):
        for who in common.in_turn(list(contenders), turn):
            trainings[who].append(contenders[who](name))
            gc.collect()
    pairs = list(zip(*trainings.values(), strict=True))
    if any(own.tokens != peer.tokens for own, peer in pairs):
        raise SystemExit(f"{name}: the two did not train on the same rows")
    max_difference = max(
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
                    for run in runs
                    for t, s in zip(run.tokens[warm:], run.seconds[warm:], strict=True)
                ]
            ),
        )
        for who, runs in trainings.items()
    ]
    records[0] |= {"ratio": common.spread(ratios), "largest_loss_difference": max_difference}
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="recipes/demo.yaml")
    parser.add_argument("--methods", nargs="*", help="default: all that the recipe trains")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--warm",
        type=int,
        default=1,
        help="steps at the start of each training that are not measured",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--set", nargs="*", default=[], help="changes of the recipe, as in `tarazu run`"
    )
    parser.add_argument("--out", type=Path, default=common.RESULTS / "cpu-demo.json")
    args = parser.parse_args()
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
                f"{name}: {own['ratio']['median']:.2f} times the plain loop, "
                f"losses within {own['largest_loss_difference']:.1e}",
                flush=True,
            )
    differences = {own["group"]: own["largest_loss_difference"] for own in records[::2]}
    if wrong := {name: by for name, by in differences.items() if not by < MAX_LOSS_DIFFERENCE}:
        raise SystemExit(f"losses differ from the plain loop's: {wrong}")


if __name__ == "__main__":
    main()
