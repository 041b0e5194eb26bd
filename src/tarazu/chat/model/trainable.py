"""A chat model under training: the causal LM that runs, and the soft prompt or prefix that stands before each row."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from tarazu.chat.model.quantization import count
from tarazu.engine.cuda_graphs.recorder import GraphedFunction
from tarazu.engine.trainable import TrainableModel
from tarazu.errors import UserError

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class TrainableChatModel(TrainableModel):
    """A `TrainableModel` whose forward pass tarazu runs itself, so that packing and left padding are right for every method.

    Args:
        base: the causal LM. Low-rank adapters sit inside its layers; a soft prompt stays outside.
        num_virtual_tokens: virtual tokens (prompt) or prefix positions before each row.
        prompt: the current soft prompt, (virtual, width); None if there is none.
        prefix: the current prefix, for each layer keys and values (key-value heads, virtual, head size); None likewise.
        loss_chunk: bytes of logits that the loss makes at a time; None: by device.
        use_cu_seqlens: batches carry `cu_seqlens` for FlashAttention instead of a mask.
        graphed_forward: the decoder's training pass as CUDA graphs; None: kernels are launched one by one.
    """

    base: PreTrainedModel | None = None
    num_virtual_tokens: int = 0
    prompt: Callable[[], torch.Tensor] | None = None
    prefix: Callable[[], KeyValues] | None = None
    loss_chunk: int | None = None
    use_cu_seqlens: bool = False
    graphed_forward: GraphedFunction | None = None

    @property
    def prefix_length(self) -> int:
        """Key-value positions before each row: all virtual tokens of prefix tuning, else 0."""
        return self.num_virtual_tokens if self.prefix else 0

    @property
    def prompt_length(self) -> int:
        """Soft-prompt tokens before each row: they take a position each, unlike a prefix."""
        return self.num_virtual_tokens - self.prefix_length

    def total_parameters(self) -> int:
        return sum(count(parameter) for parameter in self.module.parameters())


def with_adapters(
    model: PreTrainedModel, config: Any, targets: str | list[str]
) -> TrainableChatModel:
    """Low-rank adapters of peft on the linear layers whose names end in `targets`."""
    linear = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
    )
    for target in (
        [] if targets == "all-linear" else [targets] if isinstance(targets, str) else targets
    ):
        if not any(
            name == target or name.endswith("." + target) for name, _ in model.named_modules()
        ):
            near = difflib.get_close_matches(target, linear, 3) or linear
            raise UserError(
                f"no module is named {target!r}",
                location="methods: targets",
                hint=f"one of: {', '.join(near)}, or all-linear",
            )
    if config.target_modules == "all-linear" and config.peft_type == "LOHA":
        config.target_modules = [
            name for name in linear if name != "lm_head"
        ]  # peft expands the word for LoRA only
    wrapped = peft.get_peft_model(model.requires_grad_(False), config)
    return TrainableChatModel(wrapped, _trained(wrapped), base=model)


def with_soft_prompt(model: PreTrainedModel, config: Any) -> TrainableChatModel:
    """A soft prompt of peft before the word embeddings."""
    wrapped = peft.get_peft_model(model.requires_grad_(False), config)
    encoder, indices = wrapped.prompt_encoder["default"], _Indices(wrapped)

    def prompt() -> torch.Tensor:
        return encoder(indices.beside(encoder.embedding.weight))[0]

    return TrainableChatModel(
        wrapped,
        _trained(wrapped),
        base=model,
        num_virtual_tokens=config.num_virtual_tokens,
        prompt=prompt,
    )


def with_prefix(
    model: PreTrainedModel, config: Any, ids: torch.Tensor | None
) -> TrainableChatModel:
    """A prefix of keys and values of peft before every layer; begins as those of the tokens `ids` (virtual,)."""
    wrapped = peft.get_peft_model(model.requires_grad_(False), config)
    encoder, indices = wrapped.prompt_encoder["default"], _Indices(wrapped)
    settings = wrapped.peft_config["default"]
    shape = (
        config.num_virtual_tokens,
        settings.num_layers * 2,
        settings.num_attention_heads,
        settings.token_dim // settings.num_attention_heads,
    )

    def prefix() -> KeyValues:
        """peft's flat (virtual, layers * 2 * heads * size) as pairs for each layer."""
        flat = encoder(indices.beside(encoder.embedding.weight))[0].view(shape).permute(1, 2, 0, 3)
        return [(flat[2 * i], flat[2 * i + 1]) for i in range(settings.num_layers)]

    if ids is not None:
        with torch.no_grad():
            encoder.embedding.weight.copy_(
                _key_values(model, ids).reshape(config.num_virtual_tokens, -1)
            )
    return TrainableChatModel(
        wrapped,
        _trained(wrapped),
        base=model,
        num_virtual_tokens=config.num_virtual_tokens,
        prefix=prefix,
    )


class _Indices:
    """peft's numbers of the virtual tokens, (1, virtual), moved once to where they are used: a copy cannot be recorded."""

    def __init__(self, wrapped: peft.PeftModel):
        self.numbers = wrapped.prompt_tokens["default"][
            : wrapped.peft_config["default"].num_virtual_tokens
        ].unsqueeze(0)

    def beside(self, weight: torch.Tensor) -> torch.Tensor:
        self.numbers = self.numbers.to(weight.device)
        return self.numbers


def with_unfrozen(model: PreTrainedModel, parts: list[torch.nn.Module]) -> TrainableChatModel:
    """The parameters of some of the model's own parts, everything else frozen."""
    model.requires_grad_(False)
    chosen = {id(parameter) for part in parts for parameter in part.parameters()}
    names = frozenset(
        name for name, parameter in model.named_parameters() if id(parameter) in chosen
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return TrainableChatModel(model, names, base=model)


def initial_token_ids(
    tokenizer: PreTrainedTokenizerBase, text: str | None, count: int
) -> torch.Tensor:
    """`count` token ids: of a text, repeated or cut, or drawn from the vocabulary."""
    if text is None:
        return torch.randint(0, len(tokenizer), (count,))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor((ids * (count // len(ids) + 1))[:count])


@torch.no_grad()
def centre_prompt_on_embeddings(encoder: torch.nn.Module, model: PreTrainedModel) -> None:
    """Moves p-tuning's prompt to where words are: the last layer's bias is the mean word, its weights are scaled down."""
    words = model.get_input_embeddings()
    sample = words(
        torch.arange(
            0, words.num_embeddings, max(1, words.num_embeddings // 2048), device=model.device
        )
    ).float()
    last = encoder.mlp_head[-1]
    last.bias.copy_(sample.mean(0))
    device = encoder.embedding.weight.device
    made = encoder(torch.arange(encoder.embedding.num_embeddings, device=device).unsqueeze(0))[0]
    last.weight.mul_(sample.std() / (made - last.bias).std().clamp_min(1e-9))


@torch.no_grad()
def _key_values(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The keys and values of `ids`, (virtual, layers * 2, key-value heads, head size)."""
    cache = DynamicCache()
    model.get_decoder()(
        input_ids=ids.to(model.device).unsqueeze(0), past_key_values=cache, use_cache=True
    )
    pairs = [tensor[0] for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return torch.stack(pairs).permute(2, 0, 1, 3).float()


def _trained(module: torch.nn.Module) -> frozenset[str]:
    return frozenset(
        name for name, parameter in module.named_parameters() if parameter.requires_grad
    )
