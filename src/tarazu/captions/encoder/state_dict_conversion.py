"""Rename the tensors of other libraries' EfficientNets to this project's names.

lukemelas (EfficientNet-PyTorch), transformers, timm and torchvision each name the same tensors in
their own way. Every rule below maps the beginning of a name, as a regular expression, to ours.

timm and torchvision count blocks within each stage, and their first stage has blocks without an
expansion, whose parts have other names. `_flatten_stages` counts the blocks through and marks
these as `plain`.
"""

from __future__ import annotations

import re

from torch import Tensor

Rules = list[tuple[str, str]]

LUKEMELAS: Rules = [
    (r"_conv_stem\.", "stem.conv."),
    (r"_bn0\.", "stem.bn."),
    (r"_conv_head\.", "head.conv."),
    (r"_bn1\.", "head.bn."),
    (r"_blocks\.(\d+)\._(expand|depthwise|project)_conv\.", r"blocks.\1.\2.conv."),
    (r"_blocks\.(\d+)\._se_(reduce|expand)\.", r"blocks.\1.squeeze.\2."),
    (r"_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.bn."),
    (r"_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.bn."),
    (r"_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.bn."),
]
TRANSFORMERS: Rules = [
    (r"embeddings\.convolution\.", "stem.conv."),
    (r"embeddings\.batchnorm\.", "stem.bn."),
    (r"encoder\.top_conv\.", "head.conv."),
    (r"encoder\.top_bn\.", "head.bn."),
    (r"encoder\.blocks\.(\d+)\.expansion\.expand_(conv|bn)\.", r"blocks.\1.expand.\2."),
    (r"encoder\.blocks\.(\d+)\.depthwise_conv\.depthwise_conv\.", r"blocks.\1.depthwise.conv."),
    (r"encoder\.blocks\.(\d+)\.depthwise_conv\.depthwise_norm\.", r"blocks.\1.depthwise.bn."),
    (r"encoder\.blocks\.(\d+)\.squeeze_excite\.(reduce|expand)\.", r"blocks.\1.squeeze.\2."),
    (r"encoder\.blocks\.(\d+)\.projection\.project_(conv|bn)\.", r"blocks.\1.project.\2."),
]
TIMM: Rules = [
    (r"conv_stem\.", "stem.conv."),
    (r"bn1\.", "stem.bn."),
    (r"conv_head\.", "head.conv."),
    (r"bn2\.", "head.bn."),
    (r"(?:plain|block)(\d+)\.se\.conv_(reduce|expand)\.", r"blocks.\1.squeeze.\2."),
    (r"(?:plain|block)(\d+)\.conv_dw\.", r"blocks.\1.depthwise.conv."),
    (r"plain(\d+)\.bn1\.", r"blocks.\1.depthwise.bn."),
    (r"plain(\d+)\.conv_pw\.", r"blocks.\1.project.conv."),
    (r"plain(\d+)\.bn2\.", r"blocks.\1.project.bn."),
    (r"block(\d+)\.conv_pw\.", r"blocks.\1.expand.conv."),
    (r"block(\d+)\.bn1\.", r"blocks.\1.expand.bn."),
    (r"block(\d+)\.bn2\.", r"blocks.\1.depthwise.bn."),
    (r"block(\d+)\.conv_pwl\.", r"blocks.\1.project.conv."),
    (r"block(\d+)\.bn3\.", r"blocks.\1.project.bn."),
]
TORCHVISION: Rules = [
    (r"features\.0\.0\.", "stem.conv."),
    (r"features\.0\.1\.", "stem.bn."),
    (r"features\.8\.0\.", "head.conv."),
    (r"features\.8\.1\.", "head.bn."),
    (r"(?:plain|block)(\d+)\.block\.\d\.fc1\.", r"blocks.\1.squeeze.reduce."),
    (r"(?:plain|block)(\d+)\.block\.\d\.fc2\.", r"blocks.\1.squeeze.expand."),
    (r"plain(\d+)\.block\.0\.0\.", r"blocks.\1.depthwise.conv."),
    (r"plain(\d+)\.block\.0\.1\.", r"blocks.\1.depthwise.bn."),
    (r"plain(\d+)\.block\.2\.0\.", r"blocks.\1.project.conv."),
    (r"plain(\d+)\.block\.2\.1\.", r"blocks.\1.project.bn."),
    (r"block(\d+)\.block\.0\.0\.", r"blocks.\1.expand.conv."),
    (r"block(\d+)\.block\.0\.1\.", r"blocks.\1.expand.bn."),
    (r"block(\d+)\.block\.1\.0\.", r"blocks.\1.depthwise.conv."),
    (r"block(\d+)\.block\.1\.1\.", r"blocks.\1.depthwise.bn."),
    (r"block(\d+)\.block\.3\.0\.", r"blocks.\1.project.conv."),
    (r"block(\d+)\.block\.3\.1\.", r"blocks.\1.project.bn."),
]


def convert_state_dict(weights: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Rename a state dict's tensors and leave out the classifier.

    Args:
        weights: tensors of any shape, as one of the libraries names them.

    Returns:
        The library's name ("ours" where nothing is renamed), and the tensors by our names.

    Raises:
        ValueError: a name is unknown.
    """
    if "stem.conv.weight" in weights:
        return "ours", dict(weights)
    if "_conv_stem.weight" in weights:
        return "lukemelas", _rename(weights, LUKEMELAS, ("_fc.",))
    if any("embeddings.convolution" in name for name in weights):
        bare = {name.removeprefix("efficientnet."): tensor for name, tensor in weights.items()}
        return "transformers", _rename(bare, TRANSFORMERS, ("classifier.", "pooler."))
    if "conv_stem.weight" in weights:
        flat = _flatten_stages(weights, r"blocks\.(\d+)\.(\d+)\.", "conv_pwl.weight")
        return "timm", _rename(flat, TIMM, ("classifier.",))
    if "features.0.0.weight" in weights:
        flat = _flatten_stages(weights, r"features\.(\d+)\.(\d+)\.(?=block)", "block.3.0.weight")
        return "torchvision", _rename(flat, TORCHVISION, ("classifier.",))
    raise ValueError(
        "its tensors are named as in none of: lukemelas, transformers, timm, torchvision"
    )


def _rename(
    weights: dict[str, Tensor], rules: Rules, left_out: tuple[str, ...]
) -> dict[str, Tensor]:
    """Apply the first rule that fits to each name."""
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith(left_out):
            continue
        for pattern, replacement in rules:
            new_name, num_matches = re.subn(f"^{pattern}", replacement, name)
            if num_matches:
                renamed[new_name] = tensor
                break
        else:
            raise ValueError(f"an unknown tensor {name}")
    return renamed


def _flatten_stages(weights: dict[str, Tensor], prefix: str, last_part: str) -> dict[str, Tensor]:
    """Replace the prefix with stage and block by `blockN.`, or `plainN.` without an expansion.

    Args:
        weights: by name.
        prefix: pattern of a block's prefix; its two groups are stage and block.
        last_part: the tensor that only a block with an expansion has.
    """
    matches = {name: re.match(prefix, name) for name in weights}
    positions = sorted({(int(m[1]), int(m[2])) for m in matches.values() if m})
    numbers = {position: number for number, position in enumerate(positions)}
    flat = {}
    for name, tensor in weights.items():
        if match := matches[name]:
            number = numbers[int(match[1]), int(match[2])]
            kind = "block" if match[0] + last_part in weights else "plain"
            name = f"{kind}{number}.{name[match.end() :]}"
        flat[name] = tensor
    return flat
