"""The contract between the engine and a task. The engine knows nothing else of a task.

The engine owns the order of rows, the steps, the optimizer, the clock, the files and the proof. A
task owns the data, the model and the loss. A new task is one folder with a subclass of `Task` in it
and one entry in `tarazu.tasks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from tarazu.engine.cost import TaskCost
from tarazu.engine.invariants.fixture import TaskInvariants
from tarazu.engine.ledger import Ledger
from tarazu.engine.trainable import Batch, LossSum, TrainableModel
from tarazu.errors import UserError
from tarazu.storage.run_folder import StudyDir


class Data(Protocol):
    """Prepared data; rows are addressed by split and index."""

    def size(self, split: str) -> int:
        """Number of rows in the split."""
        ...


class Task(ABC):
    """What a task does for the engine. All state of a method lives in its `TrainableModel`.

    `recipe` is an instance of the task's own recipe class, `data` is what `prepare` returned.
    """

    name: ClassVar[str]
    cost: TaskCost = TaskCost()
    invariants: TaskInvariants = TaskInvariants()
    # Whether a model has no state besides its tensors. A search then resets it instead of building
    # it again.
    reuses_models: ClassVar[bool] = False

    # What every task must define.

    @abstractmethod
    def prepare(self, recipe: Any, folder: StudyDir, device: torch.device) -> Any:
        """Read, check, split and encode the data once; cache it by hash.

        Args:
            recipe: the recipe.
            folder: the study. `data.json` is written here, with the `sha256` of the data.
            device: where training will run.

        Returns:
            The data, with `size(split)` for `train`, `validation` and `test`.

        Raises:
            UserError: the data cannot be used.
        """

    @abstractmethod
    def build(
        self,
        recipe: Any,
        name: str,
        data: Any,
        seed: int,
        device: torch.device,
        folder: StudyDir | None = None,
    ) -> TrainableModel:
        """Build one method of the recipe on `device`, initialised from `seed`.

        Args:
            recipe: the recipe.
            name: the method's name in the recipe.
            data: the prepared data.
            seed: seed of the initialisation.
            device: where the model lives.
            folder: the study; `model.json` is written here if it is absent.

        Raises:
            UserError: the method does not work with this model.
        """

    @abstractmethod
    def collate(
        self, model: TrainableModel, data: Any, split: str, rows: list[int], limit: int
    ) -> list[Batch]:
        """The given rows as batches of at most `limit` tokens. A longer row has a batch of its own.

        The engine calls this in a thread, one step ahead.
        """

    @abstractmethod
    def loss(self, model: TrainableModel, batch: Any) -> LossSum:
        """Summed loss of one batch, in the module's current train or eval mode."""

    @abstractmethod
    def validate(self, model: TrainableModel, data: Any, recipe: Any) -> dict[str, float]:
        """Metrics of the validation split, with `loss`. Runs in eval mode without gradients."""

    @abstractmethod
    def evaluate(
        self, model: TrainableModel, data: Any, recipe: Any, folder: Path, ledger: Ledger
    ) -> dict[str, Any]:
        """Full evaluation on the test split after training.

        Args:
            model: the trained model.
            data: the prepared data.
            recipe: the recipe.
            folder: the run's folder; `samples.jsonl` is written here.
            ledger: times the phases `evaluate` and `generate`.

        Returns:
            The contents of `metrics.json`.
        """

    # What has a default.

    def validate_recipe(self, recipe: Any) -> None:  # noqa: B027
        """Check what the recipe's schema cannot, before a study reads or trains anything.

        Raises:
            UserError: the recipe asks for a combination that does not work.
        """

    def group_size(self, method: Any, data: Any) -> int:
        """How many neighbouring training rows stay adjacent in every shuffle."""
        return 1

    def sample(
        self, model: TrainableModel, data: Any, recipe: Any, final: bool
    ) -> list[dict[str, Any]]:
        """Outputs for fixed inputs: a few during training, all of them when `final`."""
        return []

    def summary(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The numbers of one `metrics.json` that the comparison table shows, flat."""
        return {key: value for key, value in metrics.items() if isinstance(value, (int, float))}

    def weights(self, model: TrainableModel) -> dict[str, torch.Tensor]:
        """The tensors that training changed, of any shape, by name: what is saved and loaded."""
        return {name: parameter.data for name, parameter in model.trainable().items()}

    def trained_tensors(self, model: TrainableModel) -> list[dict[str, Any]]:
        """Name and shape of the trained tensors, for `run.json`."""
        parameters = model.trainable().items()
        return [{"name": name, "shape": list(parameter.shape)} for name, parameter in parameters]

    def code_paths(self, model: TrainableModel, data: Any) -> dict[str, str]:
        """Which of several implementations ran, for the ledger."""
        return {}

    def flops_per_token(self, model: TrainableModel, data: Any, recipe: Any) -> float | None:
        """Model FLOPs of training per real token, or None where they are not counted."""
        return None

    def preview(self, data: dict[str, Any], rows: int) -> None:
        """Print what `tarazu check` shows of a `data.json`: rows, structure, problems.

        Args:
            data: the contents of `data.json`.
            rows: how many rows to show.
        """
        for split, size in (data.get("splits") or {}).items():
            print(f"{split}: {size} rows")

    def export(self, run_path: str, target: Path, export_format: str) -> None:
        """Write a finished run in a format that other tools load.

        Args:
            run_path: the run, DIR/METHOD.
            target: a new folder.
            export_format: one of the task's formats, or empty for its default.

        Raises:
            UserError: the method has no such format.
        """
        raise UserError(
            f"runs of {self.name} have no export format",
            location=run_path,
            hint=f"load {run_path}/weights.safetensors, which holds the trained tensors",
        )
