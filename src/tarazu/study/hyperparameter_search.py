"""A method's search within a study: its trials run by the real training loop, its result kept in METHOD/search.json."""

from __future__ import annotations

from pathlib import Path

import torch

from tarazu.engine import successive_halving, trainer
from tarazu.engine.ledger import Ledger
from tarazu.engine.progress import log
from tarazu.engine.signals import StopSignals
from tarazu.engine.trainable import TrainableModel
from tarazu.errors import Stopped, TarazuError
from tarazu.recipe.schema import Budget, Method, Recipe
from tarazu.storage.atomic_io import read_json, reporting_corruption, write_json
from tarazu.storage.run_folder import RunDir, StudyDir


def run_or_load_search(
    task, recipe: Recipe, name: str, data, device: torch.device, stop: StopSignals, folder: StudyDir
) -> dict | None:
    """The result of the method's search, made now if it is not there; None for the base model or without `search:`."""
    method, path = recipe.methods[name], folder.path / name / "search.json"
    if (
        recipe.search is None
        or method.kind == "base"
        or not successive_halving.candidates(recipe.search, method)
    ):
        return None
    if not path.exists():
        place = RunDir(folder.path / name / "search" / f"seed-{recipe.seeds[0]}")
        trials = TrialRunner(task, recipe, name, data, device, stop)
        write_json(
            path,
            successive_halving.run_search(
                recipe.search, method, recipe.budget, place, trials.train
            ),
        )
    return search_result(path, method)


def search_result(path: Path, method: Method) -> dict:
    """What a finished search found. Raises `UserError` where its winner is no setting of the method."""
    found = read_json(path) or {}
    with reporting_corruption(path):
        if not found["winner"]:
            raise ValueError("no winner")
        type(method).model_validate({**method.model_dump(), **found["winner"]})
        float(found["seconds"])
    return found


class TrialRunner:
    """Trains one method again and again, each time from the same start; loads the model once where only rates differ."""

    def __init__(
        self, task, recipe: Recipe, name: str, data, device: torch.device, stop: StopSignals
    ):
        self.task, self.recipe, self.name, self.data, self.device, self.stop = (
            task,
            recipe,
            name,
            data,
            device,
            stop,
        )
        self.model: TrainableModel | None = None
        self.built: Method | None = None
        self.start: dict[str, torch.Tensor] = {}

    def train(self, tried: Method, budget: Budget, trial: RunDir) -> float | None:
        """The validation loss at the end of a trial; None where it never got a finite gradient: such a rate has lost."""
        changed = self.recipe.replace_method(self.name, tried).model_copy(update={"budget": budget})
        model = self.fresh(changed, tried, trial.seed)
        try:
            trainer.train(
                self.task,
                model,
                self.data,
                changed,
                tried,
                trial,
                trial.seed,
                Ledger(self.device),
                self.stop,
                sampled=False,
            )
        except Stopped:
            raise
        except TarazuError as error:
            log(f"{self.name}: {error}")
            return None
        return [
            event["loss"]
            for event in trial.read_jsonl("events.jsonl")
            if event["event"] == "validation"
        ][-1]

    def fresh(self, recipe: Recipe, tried: Method, seed: int) -> TrainableModel:
        """The method as `seed` initialises it: the model of the last trial put back, or a new one."""
        if self.built is None or not differs_only_in_lr(tried, self.built):
            self.model, self.start = None, {}  # before the next one needs the memory
            model = self.task.build(recipe, self.name, self.data, seed, self.device)
            if not self.task.reuses_models:
                return model
            self.model, self.built = model, tried
            self.start = {
                name: tensor.detach().clone() for name, tensor in trainable_tensors(model).items()
            }
        restore(self.model, self.start)
        self.model.learning_rate = tried.learning_rate
        return self.model


def differs_only_in_lr(one: Method, other: Method) -> bool:
    """Whether two settings build the same module."""
    return one.model_copy(update={"learning_rate": other.learning_rate}) == other


def trainable_tensors(model: TrainableModel) -> dict[str, torch.Tensor]:
    """The tensors that training may change, by name."""
    everything = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
    return {name: everything[name] for name in sorted(model.trainable_names)}


@torch.no_grad()
def restore(model: TrainableModel, start: dict[str, torch.Tensor]) -> None:
    """The model as it was before any training."""
    for name, tensor in trainable_tensors(model).items():
        tensor.copy_(start[name])
        tensor.grad = None
    model.fraction, model.epoch = 0.0, 0
