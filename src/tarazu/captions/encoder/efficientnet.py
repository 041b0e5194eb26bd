"""EfficientNet in plain PyTorch: B0 (Tan and Le 2019, arXiv:1905.11946), and Lite, without squeeze-and-excite.

    image (B, 3, S, S) ─▶ stem ─▶ blocks ─▶ head ─▶ map (B, P, 1280), P = (S/32)² places from top left, row by row

The classifier and the last pooling are not built: the mean over P is exactly what the classifier would have seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

# repeats, kernel, stride, expansion, output channels (table 1 of the paper)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@dataclass(frozen=True)
class EncoderConfig:
    """What tells one EfficientNet from another.

    Args:
        size: side of the input that it was trained on.
        lite: ReLU6, no squeeze-and-excite, stem and head not widened, first and last stage not deepened.
        padding: "same" (TensorFlow's, asymmetric) or "symmetric" (PyTorch's).
        expand_epsilon: of the expansion's BatchNorm, which transformers gives PyTorch's default.
    """

    name: str
    width: float
    depth: float
    size: int
    lite: bool
    padding: str = "same"
    epsilon: float = 1e-3
    expand_epsilon: float = 1e-3
    stages: tuple[tuple[int, ...], ...] = STAGES


ENCODER_CONFIGS = {
    "efficientnet-lite0": EncoderConfig("EfficientNet-Lite0", 1.0, 1.0, 224, True),
    "efficientnet-lite1": EncoderConfig("EfficientNet-Lite1", 1.0, 1.1, 240, True),
    "efficientnet-lite2": EncoderConfig("EfficientNet-Lite2", 1.1, 1.2, 260, True),
    "efficientnet-b0": EncoderConfig("EfficientNet-B0", 1.0, 1.0, 224, False),
}


class Conv(nn.Module):
    """Convolution without bias, BatchNorm, and an activation unless `act` is None."""

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int,
        shape: EncoderConfig,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        epsilon: float | None = None,
    ):
        super().__init__()
        self.kernel, self.stride, self.same = kernel, stride, shape.padding == "same"
        self.conv = nn.Conv2d(
            inside,
            outside,
            kernel,
            stride,
            0 if self.same else kernel // 2,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(outside, eps=epsilon or shape.epsilon)
        self.act = (nn.ReLU6() if shape.lite else nn.SiLU()) if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.same and self.kernel > 1:
            x = F.pad(x, (*self._sides(x.shape[-1]), *self._sides(x.shape[-2])))
        return self.act(self.bn(self.conv(x)))

    def _sides(self, size: int) -> tuple[int, int]:
        """TensorFlow's SAME: the odd pixel goes to the right and the bottom."""
        total = max((-(-int(size) // self.stride) - 1) * self.stride + self.kernel - int(size), 0)
        return total // 2, total - total // 2


class SqueezeExcite(nn.Module):
    """Squeeze-and-excite (Hu et al. 2018): every channel is scaled by what the whole picture says of it."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce, self.expand = (
            nn.Conv2d(channels, squeezed, 1),
            nn.Conv2d(squeezed, channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """An inverted residual: widen, look around per channel, weigh, narrow; added to its input where the shapes
    agree."""

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int,
        stride: int,
        expansion: int,
        shape: EncoderConfig,
    ):
        super().__init__()
        wide = inside * expansion
        self.expand = (
            Conv(inside, wide, 1, shape, epsilon=shape.expand_epsilon)
            if expansion > 1
            else nn.Identity()
        )
        self.depthwise = Conv(wide, wide, kernel, shape, stride, groups=wide)
        self.squeeze = nn.Identity() if shape.lite else SqueezeExcite(wide, max(1, inside // 4))
        self.project = Conv(wide, outside, 1, shape, act=False)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    """The encoder. Frozen parts stay in eval mode whatever `.train()` says: training never moves their BatchNorm.

    `normal` holds the mean and standard deviation per colour, on the scale 0..255, with which `forward` normalises.
    """

    def __init__(self, shape: EncoderConfig, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.shape = shape
        self.register_buffer("normal", torch.tensor([mean, std]), persistent=False)
        stem = 32 if shape.lite else _channels(32, shape.width)
        self.stem = Conv(3, stem, 3, shape, stride=2)
        blocks, inside = [], stem
        for number, (repeats, kernel, stride, expansion, channels) in enumerate(shape.stages):
            fixed = shape.lite and number in (0, len(shape.stages) - 1)
            for i in range(repeats if fixed else math.ceil(repeats * shape.depth)):
                outside = _channels(channels, shape.width)
                blocks.append(
                    Block(inside, outside, kernel, stride if i == 0 else 1, expansion, shape)
                )
                inside = outside
        self.blocks = nn.ModuleList(blocks)
        self.head = Conv(inside, 1280 if shape.lite else _channels(1280, shape.width), 1, shape)
        self.width = self.head.bn.num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: (B, S, S, 3), values 0..255 -> features (B, P, width)."""
        x = (images.to(self.normal.dtype) - self.normal[0]) / self.normal[1]
        x = self.stem(x.permute(0, 3, 1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x).flatten(2).transpose(1, 2)

    def train(self, mode: bool = True) -> EfficientNet:
        """Only dropout could tell the difference, and there is none: BatchNorm keeps its pretrained statistics."""
        return super().train(False)

    def last_blocks(self, count: int) -> frozenset[str]:
        """Names of the parameters of the last `count` blocks and the head. Raises `ValueError` when there are fewer."""
        if count > len(self.blocks):
            raise ValueError(f"the encoder has {len(self.blocks)} blocks")
        wanted = tuple(
            f"blocks.{i}." for i in range(len(self.blocks) - count, len(self.blocks))
        ) + ("head.",)
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(wanted))


def _channels(channels: int, width: float) -> int:
    """Widened and rounded to a multiple of 8, never down by more than a tenth (the paper's rule)."""
    if width == 1.0:
        return channels
    wide = channels * width
    rounded = max(8, int(wide + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wide else rounded
