"""Train the trials of a method's hyperparameter search, and keep its result, METHOD/search.json.

`engine/successive_halving.py` decides which settings are tried and for how many tokens. Trials
train with the same loop as the runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tarazu.engine import successive_halving, trainer, weights
from tarazu.engine.ledger import Ledger
from tarazu.engine.progress import log
from tarazu.engine.signals import StopSignals
from tarazu.engine.task import Task
from tarazu.engine.trainable import TrainableModel
from tarazu.errors import Stopped, TarazuError
from tarazu.recipe.schema import Budget, Method, Recipe
from tarazu.storage.atomic_io import read_json, reporting_corruption, write_json
from tarazu.storage.run_folder import RunDir, StudyDir


def run_or_load_search(
    task: Task,
    recipe: Recipe,
    name: str,
    data: Any,
    device: torch.device,
    stop: StopSignals,
    folder: StudyDir,
) -> dict[str, Any] | None:
    """The result of a method's search. The search runs if it has no result yet.

    Args:
        task: the recipe's task.
        recipe: the recipe.
        name: the method.
        data: the prepared data.
        device: where trials run.
        stop: signals that stop a trial after a step.
        folder: the study.

    Returns:
        The content of search.json; None if the method is not searched.

    Raises:
        UserError: search.json is damaged.
        Stopped: a signal stopped a trial. The search continues with the next call.
    """
    method, search = recipe.methods[name], recipe.search
    if search is None or method.kind == "base":
        return None
    if not successive_halving.candidates(search, method):
        return None
    path = folder.path / name / "search.json"
    if not path.exists():
        trial_dir = RunDir(folder.path / name / "search" / f"seed-{recipe.seeds[0]}")
        trials = TrialRunner(task, recipe, name, data, device, stop)
        result = successive_halving.run_search(
            search, method, recipe.budget, trial_dir, trials.train
        )
        write_json(path, result)
    return search_result(path, method)


def search_result(path: Path, method: Method) -> dict[str, Any]:
    """Read and check a search.json.

    Raises:
        UserError: it is damaged, or its winner has no valid settings of the method.
    """
    result: dict[str, Any] = read_json(path, {})
    with reporting_corruption(path):
        if not result["winner"]:
            raise ValueError("no winner")
        type(method).model_validate({**method.model_dump(), **result["winner"]})
        float(result["seconds"])
    return result


class TrialRunner:
    """Trains one method repeatedly, each time from the same initial weights.

    Trials that differ only in the learning rate share one model, if the task's models can be reset.

    Args:
        task: the recipe's task.
        recipe: the recipe.
        name: the method.
        data: the prepared data.
        device: where trials run.
        stop: signals that stop a trial after a step.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        name: str,
        data: Any,
        device: torch.device,
        stop: StopSignals,
    ) -> None:
        self.task, self.recipe, self.name, self.data = task, recipe, name, data
        self.device, self.stop = device, stop
        self.model: TrainableModel | None = None
        self.settings: Method | None = None  # with which `model` was built
        self.initial: dict[str, torch.Tensor] = {}  # its trainable tensors before training

    def train(self, settings: Method, budget: Budget, trial_dir: RunDir) -> float | None:
        """Train one trial.

        Args:
            settings: the method's settings.
            budget: the trial's budget.
            trial_dir: where its checkpoints are.

        Returns:
            The validation loss at its end; None if no gradient was finite.

        Raises:
            Stopped: a signal stopped the trial.
        """
        recipe = self.recipe.replace_method(self.name, settings)
        recipe = recipe.model_copy(update={"budget": budget})
        seed = trial_dir.seed
        model = self.reset_model(recipe, settings, seed)
        try:
            trainer.train(
                self.task,
                model,
                self.data,
                recipe,
                settings,
                trial_dir,
                seed,
                Ledger(self.device),
                self.stop,
                sampled=False,
            )
        except Stopped:
            raise
        except TarazuError as error:
            log(f"{self.name}: {error}")
            return None
        events = trial_dir.read_jsonl("events.jsonl")
        losses: list[float] = [e["loss"] for e in events if e["event"] == "validation"]
        return losses[-1]

    def reset_model(self, recipe: Recipe, settings: Method, seed: int) -> TrainableModel:
        """The model as the seed initialises it.

        It is the last trial's model with its weights restored, or a new model.

        Args:
            recipe: the recipe with the trial's settings.
            settings: these settings.
            seed: seed of the initialisation.
        """
        if self.model is None or not differs_only_in_lr(settings, self.settings):
            self.model, self.initial = None, {}  # free the memory before the next model needs it
            model = self.task.build(recipe, self.name, self.data, seed, self.device)
            if not self.task.reuses_models:
                return model
            self.model, self.settings = model, settings
            self.initial = {
                name: tensor.detach().clone() for name, tensor in trainable_tensors(model).items()
            }
        weights.restore(self.model, self.initial)
        for parameter in self.model.trainable().values():
            parameter.grad = None
        self.model.fraction, self.model.epoch = 0.0, 0
        self.model.learning_rate = settings.learning_rate
        return self.model


def differs_only_in_lr(settings: Method, other: Method | None) -> bool:
    """Whether two settings build the same model."""
    if other is None:
        return False
    return settings.model_copy(update={"learning_rate": other.learning_rate}) == other


def trainable_tensors(model: TrainableModel) -> dict[str, torch.Tensor]:
    """The parameters and buffers that training may change, by name."""
    tensors = {**dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
    return {name: tensors[name] for name in sorted(model.trainable_names)}
