"""A finished run of chat, loaded back from its folder: for talking to it and for exporting it."""

from __future__ import annotations

from tarazu.chat.data import chat_template
from tarazu.chat.model import loading
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.settings import ChatRecipe
from tarazu.chat.model.building import load_base, wrap_model
from tarazu.devices import pick_device
from tarazu.engine import weights
from tarazu.errors import UserError
from tarazu.storage.atomic_io import reporting_corruption
from tarazu.storage.run_folder import RunDir, StudyDir, find_run
from tarazu.study.runner import read_recipe


def load(
    path: str, unpacked: bool = False
) -> tuple[TrainableChatModel, chat_template.Template, RunDir, ChatRecipe]:
    """The trained model of DIR/METHOD, in eval mode. Raises `UserError` when the run is not a finished run of chat.

    `unpacked`: a base that was trained on in 4 bits has those same weights in full precision, so that they can be merged.
    """
    study, run = find_run(path)
    with study.in_working_dir() as here:
        return _loaded(here, here.run(run.name, run.seed), path, unpacked)


def _loaded(
    study: StudyDir, run: RunDir, path: str, unpacked: bool
) -> tuple[TrainableChatModel, chat_template.Template, RunDir, ChatRecipe]:
    recipe = read_recipe(study)
    if not isinstance(recipe, ChatRecipe):
        raise UserError(
            "this is not a chat study", location=path, hint="`tarazu caption` describes images"
        )
    if not run.done():
        raise UserError("this run is not finished", location=path, hint=f"tarazu resume {study.path}")
    device = pick_device(recipe)
    tokenizer = loading.load_tokenizer(recipe.model, recipe.revision)
    chosen = chat_template.select_template(
        tokenizer, loading.model_type(recipe.model, recipe.revision)
    )
    model = load_base(recipe, run.name, device)
    if unpacked and recipe.quantize != "none":
        model = model.dequantize()
    recipe = with_run_settings(recipe, run)
    trainable = wrap_model(recipe, run.name, model, tokenizer)
    if run.weights.exists():
        weights.restore(trainable, weights.read(run))
    trainable.module.eval()
    return trainable, chosen, run, recipe


def with_run_settings(recipe: ChatRecipe, run: RunDir) -> ChatRecipe:
    """The recipe with the settings that this run was trained with: a search may have chosen another rank, or number of virtual tokens."""
    state, path = run.read_json("run.json") or {}, run.path / "run.json"
    with reporting_corruption(path):
        method = type(recipe.methods[run.name]).model_validate(state["settings"])
    return recipe.replace_method(run.name, method)
