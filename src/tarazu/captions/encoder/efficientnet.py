"""EfficientNet in plain PyTorch: B0 (Tan and Le 2019, arXiv:1905.11946), and the Lite variants.

    images (B, S, S, 3) ─▶ normalise ─▶ stem ─▶ blocks ─▶ head ─▶ features (B, P, 1280)

P = (S/32)² positions, from the top left, row by row. The last pooling and the classifier are not
built: the mean over P is what the classifier would read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """The differences between the EfficientNets.

    Args:
        name: as people write it.
        width: factor of the channels.
        depth: factor of the blocks per stage.
        size: side of the input that the network was trained on, in pixels.
        lite: ReLU6, no squeeze-and-excite; stem and head keep their width, the first and last stage
            their depth.
        padding: "same" (TensorFlow's, asymmetric) or "symmetric" (PyTorch's).
        epsilon: of BatchNorm.
        expand_epsilon: of the expansions' BatchNorm, where transformers has PyTorch's default.
        stages: rows as in `STAGES`.
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
    """A convolution without bias, BatchNorm, and an activation (unless `act` is False)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        config: EncoderConfig,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        epsilon: float | None = None,
    ):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.same = config.padding == "same"
        padding = 0 if self.same else kernel // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=epsilon or config.epsilon)
        self.act = (nn.ReLU6() if config.lite else nn.SiLU()) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H / stride, W / stride)."""
        if self.same and self.kernel > 1:
            x = F.pad(x, (*self._padding(x.shape[-1]), *self._padding(x.shape[-2])))
        return self.act(self.bn(self.conv(x)))

    def _padding(self, size: int) -> tuple[int, int]:
        """TensorFlow's SAME padding of one axis: an odd pixel goes to the right or the bottom."""
        total = max((-(-int(size) // self.stride) - 1) * self.stride + self.kernel - int(size), 0)
        return total // 2, total - total // 2


class SqueezeExcite(nn.Module):
    """Squeeze-and-excite (Hu et al. 2018): scale each channel by a gate from the whole image."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, C, H, W) by gates (B, C, 1, 1)."""
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(pooled))))


class Block(nn.Module):
    """An inverted residual block (Sandler et al. 2018).

    Expand the channels, convolve each one by itself, gate them, project to fewer; add the input
    where the shapes agree.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        config: EncoderConfig,
    ):
        super().__init__()
        hidden = in_channels * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion > 1:
            self.expand = Conv(in_channels, hidden, 1, config, epsilon=config.expand_epsilon)
        self.depthwise = Conv(hidden, hidden, kernel, config, stride, groups=hidden)
        self.squeeze: nn.Module = nn.Identity()
        if not config.lite:
            self.squeeze = SqueezeExcite(hidden, max(1, in_channels // 4))
        self.project = Conv(hidden, out_channels, 1, config, act=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    """The encoder. It is always in eval mode, so training never changes BatchNorm's statistics.

    Args:
        config: which network.
        mean: per channel, of values 0..255; `forward` subtracts it.
        std: per channel, of values 0..255; `forward` divides by it.
    """

    def __init__(self, config: EncoderConfig, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.config = config
        self.register_buffer("mean_std", torch.tensor([mean, std]), persistent=False)  # (2, 3)
        channels = 32 if config.lite else _scaled_channels(32, config.width)
        self.stem = Conv(3, channels, 3, config, stride=2)
        blocks = []
        last_stage = len(config.stages) - 1
        for number, (repeats, kernel, stride, expansion, width) in enumerate(config.stages):
            keeps_depth = config.lite and number in (0, last_stage)
            out_channels = _scaled_channels(width, config.width)
            for i in range(repeats if keeps_depth else math.ceil(repeats * config.depth)):
                block_stride = stride if i == 0 else 1
                blocks.append(
                    Block(channels, out_channels, kernel, block_stride, expansion, config)
                )
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.width = 1280 if config.lite else _scaled_channels(1280, config.width)
        self.head = Conv(channels, self.width, 1, config)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (B, S, S, 3), values 0..255.

        Returns:
            (B, P, width), P = (S/32)² positions.
        """
        mean, std = self.mean_std
        x = (images.to(self.mean_std.dtype) - mean) / std
        x = self.stem(x.permute(0, 3, 1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x).flatten(2).transpose(1, 2)

    def train(self, mode: bool = True) -> EfficientNet:
        """Stay in eval mode: without dropout, only BatchNorm's statistics depend on it."""
        return super().train(False)

    def last_blocks(self, count: int) -> frozenset[str]:
        """Return the names of the parameters of the last `count` blocks and of the head.

        Raises:
            ValueError: there are fewer blocks.
        """
        if count > len(self.blocks):
            raise ValueError(f"the encoder has {len(self.blocks)} blocks")
        numbers = range(len(self.blocks) - count, len(self.blocks))
        prefixes = (*(f"blocks.{i}." for i in numbers), "head.")
        return frozenset(name for name, _ in self.named_parameters() if name.startswith(prefixes))


def _scaled_channels(channels: int, factor: float) -> int:
    """Scale and round to a multiple of 8, never down by more than a tenth (the paper's rule)."""
    if factor == 1.0:
        return channels
    scaled = channels * factor
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded
