"""A tuned language model for other tools: PEFT's own adapter format, or one merged Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch

from tarazu.chat.inference.jinja_template import chat_template
from tarazu.chat.inference.trained_model import load
from tarazu.engine.progress import log
from tarazu.errors import UserError
from tarazu.storage.run_folder import find_run

LOW_RANK = {"lora", "rslora", "dora", "loha"}
SOFT = {"prompt_tuning", "prefix_tuning", "p_tuning"}
FORMS = ("merged", "peft")


def forms(kind: str) -> list[str]:
    """What a method can be exported as, its default first."""
    if kind in LOW_RANK:
        return ["merged", "peft"]
    return ["peft"] if kind in SOFT else ["merged"]


def export(run_path: str, to: Path, format: str = "") -> None:
    """Writes `to/` in a format of `forms`. Raises `UserError` for a format that this method cannot take.

    What was trained on a 4-bit base is merged into the 4-bit weights unpacked: the model that was evaluated, not packed again.
    """
    study, run = find_run(run_path)
    possible = forms(run.kind)
    format = format or possible[0]
    if format not in possible:
        raise UserError(
            f"{run.kind} cannot be exported as {format!r}: {_why_not(format, run.kind)}",
            location=run_path,
            hint=" or ".join(f"--format {one}" for one in possible),
        )
    model, template, run, recipe = load(run_path, unpacked=format == "merged")
    if format == "merged" and recipe.quantize != "none":
        log(
            "the base was trained on in 4 bits; its weights are written unpacked, the adapter merged into them"
        )
    module = model.module
    if format == "merged" and run.kind in LOW_RANK:
        module = module.merge_and_unload()
    if format == "merged":
        module.generation_config.eos_token_id = template.stop_ids
        module = module.to(
            torch.float32 if next(module.parameters()).dtype == torch.float32 else torch.bfloat16
        )
    to.mkdir(parents=True, exist_ok=True)
    to = to.absolute()
    with study.in_working_dir():  # peft looks for the base model by the path that the recipe gave
        module.save_pretrained(to)
    if (
        template.name != "tokenizer"
    ):  # trained with another template than the tokenizer's own, if it has one
        template.tokenizer.chat_template = chat_template(template)
    template.tokenizer.save_pretrained(to)


def _why_not(format: str, kind: str) -> str:
    if format not in FORMS:
        return "no format of a language model is called so"
    return (
        "a soft prompt is no part of the weights" if kind in SOFT else "this method has no adapter"
    )
