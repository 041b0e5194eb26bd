"""A finished run, loaded back from its folder: to chat with it, and to export it."""

from __future__ import annotations

from tarazu.chat.data import chat_template
from tarazu.chat.model import loading
from tarazu.chat.model.building import load_base, wrap_model
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.settings import ChatRecipe
from tarazu.devices import pick_device
from tarazu.engine import weights
from tarazu.errors import UserError
from tarazu.storage.atomic_io import reporting_corruption
from tarazu.storage.run_folder import RunDir, StudyDir, find_run
from tarazu.study.runner import read_recipe

LoadedRun = tuple[TrainableChatModel, chat_template.Template, RunDir, ChatRecipe]


def load(path: str, dequantize: bool = False) -> LoadedRun:
    """Load the trained model of a run, in eval mode.

    Args:
        path: the run, DIR/METHOD.
        dequantize: give a 4-bit base the same weights in full precision, so that adapters can be
            merged into it.

    Returns:
        The model, its chat template, the run's folder, and the recipe with the run's own settings.

    Raises:
        UserError: there is no finished run of a language model.
    """
    study, run = find_run(path)
    with study.in_working_dir() as home:
        return _load(home, home.run(run.name, run.seed), path, dequantize)


def _load(study: StudyDir, run: RunDir, path: str, dequantize: bool) -> LoadedRun:
    recipe = read_recipe(study)
    if not isinstance(recipe, ChatRecipe):
        raise UserError(
            "this study has no language models", location=path, hint="`tarazu caption` takes images"
        )
    if not run.done():
        hint = f"tarazu resume {study.path}"
        raise UserError("this run is not finished", location=path, hint=hint)
    tokenizer = loading.load_tokenizer(recipe.model, recipe.revision)
    model_type = loading.model_type(recipe.model, recipe.revision)
    template = chat_template.select_template(tokenizer, model_type)
    model = load_base(recipe, run.name, pick_device(recipe))
    if dequantize and recipe.quantize != "none":
        model = model.dequantize()
    recipe = with_run_settings(recipe, run)
    trainable = wrap_model(recipe, run.name, model, tokenizer)
    if run.weights.exists():
        weights.restore(trainable, weights.read(run))
    trainable.module.eval()
    return trainable, template, run, recipe


def with_run_settings(recipe: ChatRecipe, run: RunDir) -> ChatRecipe:
    """The recipe with the settings that the run was trained with.

    A search may have chosen another rank or number of virtual tokens than the recipe gives.

    Raises:
        UserError: run.json is damaged.
    """
    state = run.read_json("run.json") or {}
    with reporting_corruption(run.path / "run.json"):
        method = type(recipe.methods[run.name]).model_validate(state["settings"])
    return recipe.replace_method(run.name, method)
