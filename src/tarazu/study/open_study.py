"""An open study: what its runs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tarazu.engine.signals import StopSignals
from tarazu.engine.task import Task
from tarazu.recipe.schema import Recipe
from tarazu.storage.run_folder import StudyDir


@dataclass
class Study:
    """An open study: its recipe, folder, task, prepared data and device."""

    recipe: Recipe
    folder: StudyDir
    task: Task
    data: Any
    device: torch.device
    stop: StopSignals
