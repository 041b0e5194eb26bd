"""A method's trials: the model is loaded once, and that changes nothing."""

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
from tarazu.study import hyperparameter_search, runner

CPU = torch.device("cpu")
TRAINED = [name for name in small.METHODS if name != "base"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    home = tmp_path_factory.mktemp("searching")
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


def losses(recipe, data, name, folder, rates) -> list[float]:
    """The losses of one method's trials, one after the other."""
    trials, method = (
        hyperparameter_search.TrialRunner(Chat(), recipe, name, data, CPU, StopSignals("")),
        recipe.methods[name],
    )
    settings = [method.model_copy(update={"learning_rate": rate}) for rate in rates]
    return [
        trials.train(one, recipe.budget, RunDir(folder / str(i) / "seed-0"))
        for i, one in enumerate(settings)
    ]


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_that_is_used_again_gives_what_a_new_one_gives(
    recipe, data, name, tmp_path, monkeypatch
):
    built = []
    monkeypatch.setattr(
        Chat, "load", lambda self, *args, whole=Chat.load: built.append(1) or whole(self, *args)
    )
    again = losses(recipe, data, name, tmp_path / "again", [3e-2, 1e-3, 3e-2])
    assert len(built) == 1 and again[0] == again[2] != again[1]
    monkeypatch.setattr(Chat, "reuses_models", False)
    assert (
        losses(recipe, data, name, tmp_path / "anew", [3e-2, 1e-3, 3e-2]) == again
        and len(built) == 4
    )


def test_what_the_trials_held_is_gone_before_the_run_is_built(recipe, data, tmp_path, monkeypatch):
    asked, held, alive = (
        recipe.model_copy(
            update={"search": Search(tokens=400, learning_rate=[1e-3, 1e-2], extend_range=False)}
        ),
        [],
        [],
    )
    monkeypatch.setattr(
        hyperparameter_search.TrialRunner,
        "reset_model",
        lambda self, *args, whole=hyperparameter_search.TrialRunner.reset_model: keep(
            held, whole(self, *args)
        ),
    )
    monkeypatch.setattr(
        Chat,
        "build",
        lambda self, *args, whole=Chat.build: (
            alive.append([one() is not None for one in held]),
            whole(self, *args),
        )[1],
    )
    folder = StudyDir(tmp_path / "study")
    runner.run_method(
        Chat(), asked, "lora", data, folder.run("lora", 0), CPU, StopSignals(""), folder
    )
    assert len(held) == 2 and len(alive) == 2 and not any(alive[-1])


def keep(held: list, model):
    held.append(weakref.ref(model.module))
    return model


def test_another_rank_is_another_module(recipe, data, tmp_path):
    trials = hyperparameter_search.TrialRunner(Chat(), recipe, "lora", data, CPU, StopSignals(""))
    lora = recipe.methods["lora"]
    first = trials.reset_model(recipe, lora, 0)
    assert (
        trials.reset_model(recipe, lora.model_copy(update={"learning_rate": 1.0}), 0) is first
        and first.learning_rate == 1.0
    )
    wide = lora.model_copy(update={"rank": 4})
    other = trials.reset_model(
        recipe.model_copy(update={"methods": {**recipe.methods, "lora": wide}}), wide, 0
    )
    assert (
        other is not first
        and max(p.shape[0] for n, p in other.trainable().items() if "lora_A" in n) == 4
    )


@pytest.fixture(scope="module")
def of_other_sizes(tmp_path_factory):
    """A study whose recipe says rank 2 and 4 virtual tokens, where its search could only choose 8 and 6."""
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


def test_a_run_with_a_searched_rank_is_loaded_as_it_was_trained(of_other_sizes):
    """Talking to the run and exporting it need the searched 8."""
    model, *_, known = trained_model.load(str(of_other_sizes / "lora"))
    assert (
        known.methods["lora"].rank == 8
        and max(p.shape[0] for n, p in model.module.named_parameters() if "lora_A" in n) == 8
    )


def test_a_study_is_verified_with_what_its_search_chose(of_other_sizes, monkeypatch):
    built, kept = {}, (of_other_sizes / "resolved.yaml").read_text()
    monkeypatch.setattr(
        Chat,
        "build",
        lambda self, recipe, name, *args, whole=Chat.build: (
            built.setdefault(name, []).append(size(made := whole(self, recipe, name, *args)))
            or made
        ),
    )
    verify(str(of_other_sizes), [], True, "")
    assert (
        set(built) == {"lora", "prompt_tuning"}
        and set(built["lora"]) == {8}
        and set(built["prompt_tuning"]) == {6}
    )
    assert (of_other_sizes / "resolved.yaml").read_text() == kept and read_json(
        of_other_sizes / "verify.json"
    )["verdict"] == "ok"


def size(model) -> int:
    """The rank of a LoRA, or how many virtual tokens a soft prompt has."""
    return next(p.shape[0] for n, p in model.trainable().items() if "lora_A" in n or "prompt" in n)
