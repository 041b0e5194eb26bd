"""A method's search within a study: its trials run by the real training loop, its result kept in METHOD/search.json."""

from __future__ import annotations

from pathlib import Path

import torch

from tarazu.engine import trainer, successive_halving
from tarazu.engine.ledger import Ledger
from tarazu.engine.progress import note
from tarazu.engine.signals import StopSignals
from tarazu.engine.task import Trainee
from tarazu.errors import Stopped, TarazuError
from tarazu.recipe.schema import Budget, Method, Recipe
from tarazu.storage.run_folder import Run, RunFolder, read_json, understood, write_json

REUSED = {"chat"}  # tasks whose trainees hold no state besides their tensors, so that one can be trained again


def searched(task, recipe: Recipe, name: str, data, device: torch.device, stop: StopSignals, folder: RunFolder) -> dict | None:
    """The result of the method's search, made now if it is not there; None for the base model or without `search:`."""
    method, path = recipe.methods[name], folder.path / name / "search.json"
    if recipe.search is None or method.kind == "base" or not successive_halving.candidates(recipe.search, method):
        return None
    if not path.exists():
        place = Run(folder.path / name / "search" / f"seed-{recipe.seeds[0]}")
        trials = Trials(task, recipe, name, data, device, stop)
        write_json(path, successive_halving.halve(recipe.search, method, recipe.budget, place, trials.train))
    return search_result(path, method)


def search_result(path: Path, method: Method) -> dict:
    """What a finished search found. Raises `BadInput` where its winner is no setting of the method."""
    found = read_json(path) or {}
    with understood(path):
        if not found["winner"]:
            raise ValueError("no winner")
        type(method).model_validate({**method.model_dump(), **found["winner"]})
        float(found["seconds"])
    return found


class Trials:
    """Trains one method again and again, each time from the same start; loads the model once where only rates differ."""

    def __init__(self, task, recipe: Recipe, name: str, data, device: torch.device, stop: StopSignals):
        self.task, self.recipe, self.name, self.data, self.device, self.stop = task, recipe, name, data, device, stop
        self.trainee: Trainee | None = None
        self.built: Method | None = None
        self.start: dict[str, torch.Tensor] = {}

    def train(self, tried: Method, budget: Budget, trial: Run) -> float | None:
        """The validation loss at the end of a trial; None where it never got a finite gradient: such a rate has lost."""
        changed = self.recipe.with_method(self.name, tried).model_copy(update={"budget": budget})
        trainee = self.fresh(changed, tried, trial.seed)
        try:
            trainer.fit(self.task, trainee, self.data, changed, tried, trial, trial.seed, Ledger(self.device), self.stop, sampled=False)
        except Stopped:
            raise
        except TarazuError as error:
            note(f"{self.name}: {error}")
            return None
        return [event["loss"] for event in trial.read_lines("events.jsonl") if event["event"] == "validation"][-1]

    def fresh(self, recipe: Recipe, tried: Method, seed: int) -> Trainee:
        """The method as `seed` initialises it: the trainee of the last trial put back, or a new one."""
        if self.built is None or not same_but_for_rate(tried, self.built):
            self.trainee, self.start = None, {}  # before the next one needs the memory
            trainee = self.task.build(recipe, self.name, self.data, seed, self.device)
            if recipe.task not in REUSED:
                return trainee
            self.trainee, self.built = trainee, tried
            self.start = {name: tensor.detach().clone() for name, tensor in changing(trainee).items()}
        put_back(self.trainee, self.start)
        self.trainee.learning_rate = tried.learning_rate
        return self.trainee


def same_but_for_rate(one: Method, other: Method) -> bool:
    """Whether two settings build the same module."""
    return one.model_copy(update={"learning_rate": other.learning_rate}) == other


def changing(trainee: Trainee) -> dict[str, torch.Tensor]:
    """The tensors that training may change, by name."""
    everything = {**dict(trainee.module.named_parameters()), **dict(trainee.module.named_buffers())}
    return {name: everything[name] for name in sorted(trainee.may_change)}


@torch.no_grad()
def put_back(trainee: Trainee, start: dict[str, torch.Tensor]) -> None:
    """The trainee as it was before any training."""
    for name, tensor in changing(trainee).items():
        tensor.copy_(start[name])
        tensor.grad = None
    trainee.fraction, trainee.epoch = 0.0, 0
