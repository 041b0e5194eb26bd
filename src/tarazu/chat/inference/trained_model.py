"""A finished run of chat, loaded back from its folder: for talking to it and for exporting it."""

from __future__ import annotations

from tarazu.chat.data import chat_template
from tarazu.chat.model import loading
from tarazu.chat.settings import ChatRecipe
from tarazu.chat.task import Chat
from tarazu.chat.model.trainable import ChatTrainee
from tarazu.engine import weights
from tarazu.errors import BadInput
from tarazu.storage.run_folder import Run, RunFolder, find_run, understood
from tarazu.study.runner import pick_device, read_recipe


def load(path: str, unpacked: bool = False) -> tuple[ChatTrainee, chat_template.Template, Run, ChatRecipe]:
    """The trained model of DIR/METHOD, in eval mode. Raises `BadInput` when the run is not a finished run of chat.

    `unpacked`: a base that was trained on in 4 bits has those same weights in full precision, so that they can be merged.
    """
    study, run = find_run(path)
    with study.at_home() as here:
        return _loaded(here, here.run(run.name, run.seed), path, unpacked)


def _loaded(study: RunFolder, run: Run, path: str, unpacked: bool) -> tuple[ChatTrainee, chat_template.Template, Run, ChatRecipe]:
    recipe = read_recipe(study)
    if recipe.task != "chat":
        raise BadInput("this is not a chat study", where=path, todo="`tarazu caption` describes images")
    if not run.done():
        raise BadInput("this run is not finished", where=path, todo=f"tarazu resume {study.path}")
    device = pick_device(recipe)
    tokenizer = loading.load_tokenizer(recipe.model, recipe.revision)
    chosen = chat_template.choose(tokenizer, loading.model_type(recipe.model, recipe.revision))
    task = Chat()
    model = task.load(recipe, run.name, device)
    if unpacked and recipe.quantize != "none":
        model = model.dequantize()
    recipe = as_trained(recipe, run)
    trainee = task.ready(recipe, run.name, model, tokenizer)
    if run.weights.exists():
        weights.put(trainee, weights.read(run))
    trainee.module.eval()
    return trainee, chosen, run, recipe


def as_trained(recipe: ChatRecipe, run: Run) -> ChatRecipe:
    """The recipe with the settings that this run was trained with: a search may have chosen another rank, or number of virtual tokens."""
    state, path = run.read_json("run.json") or {}, run.path / "run.json"
    with understood(path):
        method = type(recipe.methods[run.name]).model_validate(state["settings"])
    return recipe.with_method(run.name, method)
