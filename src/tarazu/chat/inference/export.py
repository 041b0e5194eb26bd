"""A tuned language model for other tools: a PEFT adapter, or one merged Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import torch

from tarazu.chat.inference.jinja_template import chat_template
from tarazu.chat.inference.trained_model import load
from tarazu.engine.progress import log
from tarazu.errors import UserError
from tarazu.storage.run_folder import find_run

LOW_RANK = {"lora", "rslora", "dora", "loha"}
SOFT_PROMPTS = {"prompt_tuning", "prefix_tuning", "p_tuning"}
MERGED, PEFT = "merged", "peft"


def formats(kind: str) -> list[str]:
    """The formats that a kind of method can be exported in, its default first."""
    if kind in LOW_RANK:
        return [MERGED, PEFT]
    return [PEFT] if kind in SOFT_PROMPTS else [MERGED]


def export(run_path: str, target: Path, export_format: str = "") -> None:
    """Write a finished run to a folder that transformers or peft can load.

    A 4-bit base is written unpacked, with the adapter merged into it: that is the model that was
    evaluated. Packing it again would change it.

    Args:
        run_path: the run, DIR/METHOD.
        target: a new folder.
        export_format: one of `formats`; empty for the default.

    Raises:
        UserError: there is no such run, or its method has no such format.
    """
    study, run = find_run(run_path)
    possible = formats(run.kind)
    export_format = export_format or possible[0]
    if export_format not in possible:
        raise UserError(
            f"{run.kind} cannot be exported as {export_format!r}: "
            f"{_reason(export_format, run.kind)}",
            location=run_path,
            hint=" or ".join(f"--format {name}" for name in possible),
        )
    merged = export_format == MERGED
    model, template, run, recipe = load(run_path, dequantize=merged)
    if merged and recipe.quantize != "none":
        log("the base was trained on in 4 bits; its weights are written unpacked, adapter merged")
    module = model.module
    if merged and run.kind in LOW_RANK:
        module = module.merge_and_unload()
    if merged:
        module.generation_config.eos_token_id = template.stop_ids
        full_precision = next(module.parameters()).dtype == torch.float32
        module = module.to(torch.float32 if full_precision else torch.bfloat16)
    target = target.absolute()
    target.mkdir(parents=True, exist_ok=True)
    with study.in_working_dir():  # peft looks for the base model by the recipe's relative path
        module.save_pretrained(target)
    if template.name != "tokenizer":  # the tokenizer has another template, or none
        template.tokenizer.chat_template = chat_template(template)
    template.tokenizer.save_pretrained(target)


def _reason(export_format: str, kind: str) -> str:
    """Why a kind of method has no such format."""
    if export_format not in (MERGED, PEFT):
        return "there is no such format of a language model"
    if kind in SOFT_PROMPTS:
        return "a soft prompt is not part of the weights"
    return "this method has no adapter"
