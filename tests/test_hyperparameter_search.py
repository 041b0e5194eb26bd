"""Searches within a study: one model serves all trials, and runs have the settings that won."""

from __future__ import annotations

import weakref

import pytest
import torch
from chat import small

from tarazu.chat.inference import trained_model
from tarazu.chat.task import Chat
from tarazu.commands import run as study_commands
from tarazu.commands.verify import verify
from tarazu.engine.signals import StopSignals
from tarazu.recipe.schema import Search, load
from tarazu.storage.atomic_io import read_json
from tarazu.storage.run_folder import RunDir, StudyDir
from tarazu.study.hyperparameter_search import TrialRunner
from tarazu.study.method_run import run_method
from tarazu.study.open_study import Study

CPU = torch.device("cpu")
TRAINED = [name for name in small.METHODS if name != "base"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    home = tmp_path_factory.mktemp("search")
    budget = {
        "tokens": 2_000,
        "batch_rows": 4,
        "micro_batch_tokens": 1000,
        "evaluate_every": 1_000,
        "validation_rows": 2,
    }
    return load(
        small.recipe(
            home / "recipe.yaml", small.save_model(home / "model"), budget=budget, forgetting=None
        )
    )


@pytest.fixture(scope="module")
def data(recipe, tmp_path_factory):
    return Chat().prepare(recipe, StudyDir(tmp_path_factory.mktemp("data")), CPU)


def trial_losses(recipe, data, name, folder, rates) -> list[float]:
    """The losses of one method's trials, one after the other."""
    trials = TrialRunner(Chat(), recipe, name, data, CPU, StopSignals(""))
    losses = []
    for number, rate in enumerate(rates):
        settings = recipe.methods[name].model_copy(update={"learning_rate": rate})
        trial_dir = RunDir(folder / str(number) / "seed-0")
        losses.append(trials.train(settings, recipe.budget, trial_dir))
    return losses


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_that_is_reset_trains_as_a_new_one_does(recipe, data, name, tmp_path, monkeypatch):
    builds = []

    def counting_build(self, *args, original=Chat.build):
        builds.append(1)
        return original(self, *args)

    monkeypatch.setattr(Chat, "build", counting_build)
    rates = [3e-2, 1e-3, 3e-2]
    reset = trial_losses(recipe, data, name, tmp_path / "reset", rates)
    assert len(builds) == 1
    assert reset[0] == reset[2] != reset[1]
    monkeypatch.setattr(Chat, "reuses_models", False)
    assert trial_losses(recipe, data, name, tmp_path / "new", rates) == reset
    assert len(builds) == 4


def test_models_of_trials_are_freed_before_the_run_builds_its_own(
    recipe, data, tmp_path, monkeypatch
):
    search = Search(tokens=400, learning_rate=[1e-3, 1e-2], extend_range=False)
    recipe = recipe.model_copy(update={"search": search})
    trial_modules, alive_at_build = [], []

    def recording_reset(self, *args, original=TrialRunner.reset_model):
        model = original(self, *args)
        trial_modules.append(weakref.ref(model.module))
        return model

    def recording_build(self, *args, original=Chat.build):
        alive_at_build.append([module() is not None for module in trial_modules])
        return original(self, *args)

    monkeypatch.setattr(TrialRunner, "reset_model", recording_reset)
    monkeypatch.setattr(Chat, "build", recording_build)
    folder = StudyDir(tmp_path / "study")
    study = Study(recipe, folder, Chat(), data, CPU, StopSignals(""))
    run_method(study, "lora", folder.run("lora", 0))
    assert len(trial_modules) == 2 and len(alive_at_build) == 2
    assert not any(alive_at_build[-1])


def test_another_rank_needs_another_model(recipe, data):
    trials = TrialRunner(Chat(), recipe, "lora", data, CPU, StopSignals(""))
    lora = recipe.methods["lora"]
    first = trials.reset_model(recipe, lora, 0)
    faster = lora.model_copy(update={"learning_rate": 1.0})
    assert trials.reset_model(recipe, faster, 0) is first
    assert first.learning_rate == 1.0
    higher_rank = lora.model_copy(update={"rank": 4})
    other = trials.reset_model(recipe.replace_method("lora", higher_rank), higher_rank, 0)
    assert other is not first
    assert max(p.shape[0] for n, p in other.trainable().items() if "lora_A" in n) == 4


@pytest.fixture(scope="module")
def study_with_other_sizes(tmp_path_factory):
    """A study with rank 2 and 4 virtual tokens; its search can only choose 8 and 6."""
    home = tmp_path_factory.mktemp("sizes")
    budget = {
        "tokens": 800,
        "batch_rows": 4,
        "micro_batch_tokens": 1000,
        "evaluate_every": 800,
        "validation_rows": 2,
    }
    methods = {"lora": {"rank": 2}, "prompt_tuning": {"num_virtual_tokens": 4}}
    search = {"tokens": 400, "rank": [8], "num_virtual_tokens": [6], "extend_range": False}
    path = small.recipe(
        home / "recipe.yaml",
        small.save_model(home / "model"),
        budget=budget,
        forgetting=None,
        search=search,
        methods=methods,
    )
    study_commands.run(recipe_path=str(path), out=str(home / "out"))
    return home / "out"


def test_a_run_is_loaded_with_the_rank_that_its_search_chose(study_with_other_sizes):
    model, *_, recipe = trained_model.load(str(study_with_other_sizes / "lora"))
    assert recipe.methods["lora"].rank == 8
    assert max(p.shape[0] for n, p in model.module.named_parameters() if "lora_A" in n) == 8


def test_a_study_is_verified_with_the_settings_that_its_search_chose(
    study_with_other_sizes, monkeypatch
):
    sizes, before = {}, (study_with_other_sizes / "resolved.yaml").read_text()

    def recording_build(self, recipe, name, *args, original=Chat.build):
        model = original(self, recipe, name, *args)
        sizes.setdefault(name, set()).add(adapter_size(model))
        return model

    monkeypatch.setattr(Chat, "build", recording_build)
    verify(str(study_with_other_sizes), [], True, "")
    assert sizes == {"lora": {8}, "prompt_tuning": {6}}
    assert (study_with_other_sizes / "resolved.yaml").read_text() == before
    assert read_json(study_with_other_sizes / "verify.json")["verdict"] == "ok"


def adapter_size(model) -> int:
    """The rank of a LoRA, or the number of virtual tokens of a soft prompt."""
    tensors = model.trainable().items()
    return next(p.shape[0] for n, p in tensors if "lora_A" in n or "prompt" in n)
