"""A chat model that can be trained: the causal LM, and the soft prompt or prefix before each
row."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import peft
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from tarazu.chat.model.quantization import count
from tarazu.engine.cuda_graphs.recorder import GraphedFunction
from tarazu.engine.trainable import TrainableModel
from tarazu.errors import UserError

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer
EMBEDDING_SAMPLE = 2048  # rows of the embedding table that `centre_prompt_on_embeddings` looks at


@dataclass
class TrainableChatModel(TrainableModel):
    """A `TrainableModel` whose forward pass is `forward.hidden_states`, not the model's own.

    So packing and left padding are right for every method.

    Args:
        base: the causal LM. Low-rank adapters sit inside its layers; a soft prompt stays outside.
        num_virtual_tokens: soft-prompt tokens or prefix positions before each row.
        prompt: gives the current soft prompt, (num_virtual_tokens, width); None: no soft prompt.
        prefix: gives the current prefix, keys and values of each layer, both (key-value heads,
            num_virtual_tokens, head_dim); None: no prefix.
        loss_chunk: bytes of logits that the loss computes at a time; None: by device.
        use_cu_seqlens: batches carry `cu_seqlens` for FlashAttention instead of a mask.
        graphed_forward: the decoder's training pass as CUDA graphs; None: without graphs.
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
        """Soft-prompt tokens before each row. Unlike a prefix they take positions in the batch."""
        return self.num_virtual_tokens - self.prefix_length

    def total_parameters(self) -> int:
        """Number of weights of the module; a 4-bit matrix counts as what it stands for."""
        return sum(count(parameter) for parameter in self.module.parameters())


def with_adapters(
    model: PreTrainedModel, config: peft.PeftConfig, targets: str | list[str]
) -> TrainableChatModel:
    """Put low-rank adapters of peft on linear layers.

    Args:
        model: the base model; everything but the adapters is frozen.
        config: peft's configuration of the adapters.
        targets: "all-linear", or ends of names of modules.

    Raises:
        UserError: no module has such a name.
    """
    module_names = {name for name, _ in model.named_modules()}
    linear_names = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
    )
    if targets != "all-linear":
        for target in [targets] if isinstance(targets, str) else targets:
            _require_module(target, module_names, linear_names)
    if config.target_modules == "all-linear" and config.peft_type == "LOHA":
        # peft itself expands "all-linear" for LoRA only.
        config.target_modules = [name for name in linear_names if name != "lm_head"]
    wrapped = peft.get_peft_model(model.requires_grad_(False), config)
    return TrainableChatModel(wrapped, _trainable_names(wrapped), base=model)


def _require_module(target: str, module_names: set[str], linear_names: list[str]) -> None:
    if any(name == target or name.endswith("." + target) for name in module_names):
        return
    similar = difflib.get_close_matches(target, linear_names, 3) or linear_names
    raise UserError(
        f"no module is named {target!r}",
        location="methods: targets",
        hint=f"one of: {', '.join(similar)}, or all-linear",
    )


def with_soft_prompt(
    model: PreTrainedModel, config: peft.PromptLearningConfig
) -> TrainableChatModel:
    """Put a soft prompt of peft before the token embeddings.

    Args:
        model: the base model; it is frozen.
        config: peft's configuration of prompt tuning or p-tuning.
    """
    wrapped = peft.get_peft_model(model.requires_grad_(False), config)
    return TrainableChatModel(
        wrapped,
        _trainable_names(wrapped),
        base=model,
        num_virtual_tokens=config.num_virtual_tokens,
        prompt=_PromptEncoder(wrapped),
    )


def with_prefix(
    model: PreTrainedModel, config: peft.PrefixTuningConfig, ids: torch.Tensor | None
) -> TrainableChatModel:
    """Put a prefix of keys and values of peft before every layer.

    Args:
        model: the base model; it is frozen.
        config: peft's configuration of prefix tuning.
        ids: (num_virtual_tokens,) the prefix starts as the keys and values of these tokens; None:
            as peft draws it.
    """
    wrapped = peft.get_peft_model(model.requires_grad_(False), config)
    prompt_encoder = _PromptEncoder(wrapped)
    settings = wrapped.peft_config["default"]
    shape = (
        config.num_virtual_tokens,
        settings.num_layers * 2,
        settings.num_attention_heads,
        settings.token_dim // settings.num_attention_heads,
    )

    def prefix() -> KeyValues:
        # peft's rows hold keys and values of all layers: (num_virtual_tokens, layers * 2 * width).
        tensors = prompt_encoder().view(shape).permute(1, 2, 0, 3)
        return [(tensors[2 * i], tensors[2 * i + 1]) for i in range(settings.num_layers)]

    if ids is not None:
        with torch.no_grad():
            initial = _key_values(model, ids).reshape(config.num_virtual_tokens, -1)
            prompt_encoder.encoder.embedding.weight.copy_(initial)
    return TrainableChatModel(
        wrapped,
        _trainable_names(wrapped),
        base=model,
        num_virtual_tokens=config.num_virtual_tokens,
        prefix=prefix,
    )


class _PromptEncoder:
    """Calls peft's prompt encoder on all its virtual tokens: (num_virtual_tokens, numbers).

    The indices move to the encoder's device once, at the first call: a CUDA graph cannot capture
    the copy from the host.
    """

    def __init__(self, wrapped: peft.PeftModel):
        self.encoder = wrapped.prompt_encoder["default"]
        count = wrapped.peft_config["default"].num_virtual_tokens
        self.indices = wrapped.prompt_tokens["default"][:count].unsqueeze(0)

    def __call__(self) -> torch.Tensor:
        self.indices = self.indices.to(self.encoder.embedding.weight.device)
        return self.encoder(self.indices)[0]


def with_unfrozen(model: PreTrainedModel, parts: list[torch.nn.Module]) -> TrainableChatModel:
    """Train some of the model's own parts and freeze everything else.

    Args:
        model: the base model.
        parts: submodules of `model` whose parameters are trained.
    """
    model.requires_grad_(False)
    unfrozen = {id(parameter) for part in parts for parameter in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in unfrozen)
    return TrainableChatModel(model, _trainable_names(model), base=model)


def initial_token_ids(
    tokenizer: PreTrainedTokenizerBase, text: str | None, count: int
) -> torch.Tensor:
    """(count,) token ids of a text, repeated or cut to `count`; drawn from the vocabulary if
    None."""
    if text is None:
        return torch.randint(0, len(tokenizer), (count,))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor((ids * (count // len(ids) + 1))[:count])


@torch.no_grad()
def centre_prompt_on_embeddings(encoder: torch.nn.Module, model: PreTrainedModel) -> None:
    """Let p-tuning's prompt start with the mean and the spread of token embeddings.

    The last layer's bias becomes the mean embedding, and its weights are scaled.

    Args:
        encoder: peft's `PromptEncoder`.
        model: the base model.
    """
    embeddings = model.get_input_embeddings()
    stride = max(1, embeddings.num_embeddings // EMBEDDING_SAMPLE)
    ids = torch.arange(0, embeddings.num_embeddings, stride, device=model.device)
    sample = embeddings(ids).float()
    last = encoder.mlp_head[-1]
    last.bias.copy_(sample.mean(0))
    device = encoder.embedding.weight.device
    indices = torch.arange(encoder.embedding.num_embeddings, device=device).unsqueeze(0)
    prompt = encoder(indices)[0]
    last.weight.mul_(sample.std() / (prompt - last.bias).std().clamp_min(1e-9))


@torch.no_grad()
def _key_values(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The keys and values of (n,) `ids` as (n, layers * 2, key-value heads, head_dim)."""
    cache = DynamicCache()
    decoder = model.get_decoder()
    decoder(input_ids=ids.to(model.device).unsqueeze(0), past_key_values=cache, use_cache=True)
    tensors = [tensor[0] for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return torch.stack(tensors).permute(2, 0, 1, 3).float()


def _trainable_names(module: torch.nn.Module) -> frozenset[str]:
    return frozenset(name for name, p in module.named_parameters() if p.requires_grad)
