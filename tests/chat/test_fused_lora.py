"""LoRA fused into the base products equals LoRA beside them, and changes nothing of the model."""

from __future__ import annotations

import peft
import pytest
import torch
from chat import test_graphed_forward, tiny
from chat.test_methods import rows
from torch._dynamo.backends.debugging import aot_eager
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from tarazu.chat.fast import compile_layers as compiled
from tarazu.chat.fast import fused_lora, lightweight_adapters
from tarazu.chat.model import flex_attention
from tarazu.chat.model.batching import make_batch
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.loss import token_losses
from tarazu.chat.model.trainable import with_adapters
from tarazu.engine.fingerprint import fingerprint

TWO = {**tiny.SIZES, **tiny.SPECIALS, "num_hidden_layers": 2}


def build(
    family: str = "llama",
    biases: bool = False,
    attention: str = "eager",
    dtype: torch.dtype = torch.float32,
    **settings,
):
    """A model of two layers with weights so large that mistakes show; `settings` are peft's."""
    torch.manual_seed(0)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**TWO, attention_bias=biases, mlp_bias=biases))
    else:
        model = Gemma2ForCausalLM(Gemma2Config(**TWO, sliding_window=12, query_pre_attn_scalar=8))
    model.to(dtype).set_attn_implementation(attention)
    trainable = with_adapters(
        model,
        peft.LoraConfig(
            **{
                "r": 4,
                "lora_alpha": 12,
                "target_modules": "all-linear",
                "task_type": "CAUSAL_LM",
                **settings,
            }
        ),
        "all-linear",
    )
    with torch.no_grad():
        for name, parameter in trainable.module.named_parameters():
            if parameter.dim() == 2 or "bias" in name:
                parameter.normal_(0, 0.15)
    lightweight_adapters.use_lightweight_forward(trainable.base)
    return trainable


def compile_layers(trainable, checkpointing: bool = False) -> list:
    """Trace the layers as the compiler does, but run them eagerly; returns the traced graphs."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    for layer in trainable.base.get_decoder().layers:
        layer.self_attn.sliding_window = None  # as `compile_layers` does
    compiled.wrap_layers(
        trainable.base, checkpointing, lambda forward: torch.compile(forward, backend=backend)
    )
    return graphs


def has_fused_lora(graph: torch.fx.GraphModule) -> bool:
    return any(
        "low_rank_product" in str(part.graph)
        for part in graph.modules()
        if isinstance(part, torch.fx.GraphModule)
    )


def loss_of(trainable, lengths: tuple[int, ...], width: int) -> torch.Tensor:
    batch = make_batch([rows(lengths)], width=width)
    hidden = hidden_states(trainable, batch).flatten(0, 1).index_select(0, batch.label_positions)
    return token_losses(trainable.base, hidden, batch.labels).sum()


def gradients(trainable, *passes: tuple[int, ...], width: int = 256) -> dict[str, torch.Tensor]:
    """Loss and gradients of several forward passes before one backward pass."""
    trainable.module.train().zero_grad()
    loss = sum([loss_of(trainable, lengths, width) for lengths in passes or [(90, 41)]])
    loss.backward()
    return {
        "loss": loss.detach(),
        **{key: parameter.grad.clone() for key, parameter in trainable.trainable().items()},
    }


def agree(actual: dict, expected: dict) -> bool:
    return actual.keys() == expected.keys() and all(
        torch.linalg.norm(actual[key] - expected[key]) < 1e-4 * torch.linalg.norm(expected[key])
        for key in actual
    )


@pytest.fixture
def blocks(monkeypatch):
    """Flex attention with block masks on a CPU."""
    torch._dynamo.reset()
    monkeypatch.setattr(flex_attention, "is_block_aligned", lambda queries, device: True)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


CASES = {
    "gemma2": {"family": "gemma2"},
    "biases, different ranks": {
        "biases": True,
        "rank_pattern": {"k_proj": 7, "up_proj": 1},
        "alpha_pattern": {"v_proj": 3, "gate_proj": 20},
    },
    "rslora, twice the aligned rank": {"r": 40, "use_rslora": True},
    "dora": {"family": "gemma2", "use_dora": True},
    "dora, biases, different ranks": {
        "use_dora": True,
        "biases": True,
        "rank_pattern": {"k_proj": 7, "up_proj": 1},
        "alpha_pattern": {"v_proj": 3, "gate_proj": 20},
    },
}


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_the_plain_paths(case):
    plain, fused = build(**CASES[case]), build(**CASES[case], attention=flex_attention.NAME)
    assert fused_lora.fuse_lora_layers(fused.base) == 2 * len(fused_lora.GROUPS)
    graphs = compile_layers(fused)
    assert agree(gradients(fused), gradients(plain))
    assert len(graphs) == 1 and has_fused_lora(graphs[0]), "one compiled code for all layers"
    with torch.no_grad():  # after a step of the optimizer
        for trainable in (plain, fused):
            for parameter in trainable.trainable().values():
                parameter.mul_(1.5)
    for lengths, width in (((33, 150, 70), 256), ((33, 200, 70), 384))[
        : 1 + (case in ("gemma2", "dora"))
    ]:  # another width is compiled again
        assert agree(gradients(fused, lengths, width=width), gradients(plain, lengths, width=width))
        assert len(graphs) == 1 + (width == 384)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("stack", [fused_lora.MAX_STACK_BYTES, 1])
def test_two_forward_passes_before_a_backward_pass_with_any_stack_size(stack, monkeypatch):
    """The second pass fills the matrices again, with the same numbers."""
    monkeypatch.setattr(fused_lora, "MAX_STACK_BYTES", stack)
    plain, fused = build(), build(attention=flex_attention.NAME)
    assert fused_lora.fuse_lora_layers(fused.base) == 2 * len(fused_lora.GROUPS)
    stacks = {
        layer.mlp.down_proj.group.matrix.untyped_storage().data_ptr()
        for layer in fused.base.model.layers
    }
    assert len(stacks) == (2 if stack == 1 else 1)
    graphs = compile_layers(fused)
    assert agree(gradients(fused, (90, 41), (60, 100)), gradients(plain, (90, 41), (60, 100)))
    assert has_fused_lora(graphs[0])


@pytest.mark.usefixtures("blocks")
def test_layers_of_different_rank_or_scale_have_stacks_of_their_own():
    """The second layer's key has another rank, so its group has another signature."""
    different = {
        "rank_pattern": {r"layers\.1\..*k_proj": 7},
        "alpha_pattern": {r"layers\.0\..*down_proj": 40},
    }
    plain, fused = build(**different), build(**different, attention=flex_attention.NAME)
    assert fused_lora.fuse_lora_layers(fused.base) == 2 * len(fused_lora.GROUPS)
    num_stacks = {}
    for name in ("self_attn.k_proj", "mlp.down_proj", "mlp.up_proj"):
        layers = [layer.get_submodule(name) for layer in fused.base.model.layers]
        storages = {layer.group.matrix.untyped_storage().data_ptr() for layer in layers}
        num_stacks[name] = len(storages)
    assert num_stacks == {"self_attn.k_proj": 2, "mlp.down_proj": 2, "mlp.up_proj": 1}
    compile_layers(fused)
    assert agree(gradients(fused), gradients(plain))


@pytest.mark.usefixtures("blocks")
def test_checkpointing_gives_the_same_gradients():
    kept, recomputed = (build(use_dora=True, attention=flex_attention.NAME) for _ in range(2))
    for trainable, checkpointing in ((kept, False), (recomputed, True)):
        fused_lora.fuse_lora_layers(trainable.base)
        assert all(map(has_fused_lora, compile_layers(trainable, checkpointing)))
    assert agree(gradients(recomputed), gradients(kept))


@pytest.mark.usefixtures("blocks")
def test_bfloat16_dora_is_as_close_to_float32_as_the_plain_path():
    exact, plain, fused = (
        build(use_dora=True),
        build(use_dora=True, dtype=torch.bfloat16),
        build(use_dora=True, dtype=torch.bfloat16, attention=flex_attention.NAME),
    )
    fused_lora.fuse_lora_layers(fused.base)
    graphs = compile_layers(fused)
    expected, *actual = (gradients(trainable) for trainable in (exact, plain, fused))
    norm = torch.linalg.norm
    plain_errors, fused_errors = (
        {
            key: float(norm(grads[key].float() - value) / norm(value))
            for key, value in expected.items()
        }
        for grads in actual
    )
    assert has_fused_lora(graphs[0])
    for key, error in fused_errors.items():
        assert error < 1.5 * plain_errors[key] + 0.005, key


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_dropout": 0.5},
        {"use_dora": True, "lora_dropout": 0.5},
        {"lora_bias": True},
        {"r": fused_lora.MAX_FUSED_RANK + 1},
        {"target_modules": ["q_proj", "up_proj"]},
    ],
)
def test_other_adapters_stay_as_they_are(settings):
    trainable = build(**settings)
    kinds = [type(module) for module in trainable.module.modules()]
    assert fused_lora.fuse_lora_layers(trainable.base) == 0
    assert kinds == [type(module) for module in trainable.module.modules()]


@pytest.mark.usefixtures("blocks")
def test_fusing_changes_no_parameter_and_stores_nothing_twice():
    trainable = build(biases=True, attention=flex_attention.NAME)
    before = fingerprint(trainable.module)
    fused_lora.fuse_lora_layers(trainable.base)
    compile_layers(trainable)
    gradients(trainable)
    assert fingerprint(trainable.module) == before
    gate, up = (
        getattr(trainable.base.model.layers[1].mlp, name) for name in ("gate_proj", "up_proj")
    )
    storage = gate.group.matrix.untyped_storage().data_ptr()
    assert gate.group is up.group
    assert {layer.base_layer.weight.untyped_storage().data_ptr() for layer in (gate, up)} == {
        storage
    }


@pytest.mark.usefixtures("blocks")
def test_other_ranks_in_one_process_make_no_symbolic_sizes():
    """torch 2.11 cannot compile a matrix with symbolic sizes (`overwrite_tensor_vt_proxy`)."""
    for rank in (4, 40, 64):
        trainable = build(r=rank, attention=flex_attention.NAME)
        fused_lora.fuse_lora_layers(trainable.base)
        traced_inputs = []

        def backend(graph, inputs, traced_inputs=traced_inputs):
            traced_inputs.extend(
                node.meta["example_value"] for node in graph.graph.nodes if node.op == "placeholder"
            )
            return aot_eager(graph, inputs)

        compiled.wrap_layers(
            trainable.base,
            False,
            lambda forward, backend=backend: torch.compile(forward, backend=backend),
        )
        gradients(trainable)
        assert traced_inputs and all(
            isinstance(x, torch.Tensor) and all(isinstance(side, int) for side in x.shape)
            for x in traced_inputs
        )


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dora", [False, True])
def test_disabled_or_merged_adapters_equal_plain_ones(dora):
    plain, fused = build(use_dora=dora), build(use_dora=dora, attention=flex_attention.NAME)
    fused_lora.fuse_lora_layers(fused.base)
    graphs = compile_layers(fused)
    batch = make_batch([rows((90, 41))], width=256)
    real = batch.segments[0] >= 0
    for trainable in (plain, fused):
        trainable.base.get_input_embeddings().requires_grad_()  # or nothing would need gradients
    with plain.module.disable_adapter(), fused.module.disable_adapter():
        torch.testing.assert_close(
            hidden_states(fused, batch)[0][real],
            hidden_states(plain, batch)[0][real],
            atol=1e-4,
            rtol=1e-4,
        )
    for trainable in (plain, fused):
        trainable.module.merge_adapter()
    torch.testing.assert_close(
        hidden_states(fused, batch)[0][real],
        hidden_states(plain, batch)[0][real],
        atol=1e-4,
        rtol=1e-4,
    )
    assert graphs and not any(map(has_fused_lora, graphs))


@test_graphed_forward.GPU
@pytest.mark.parametrize("shape", ["gemma2", "llama"])
@pytest.mark.parametrize("name", ["lora", "rslora", "dora"])
def test_captured_on_a_gpu_gives_the_plain_paths_gradients(name, shape, monkeypatch):
    monkeypatch.setattr(compiled, "MIN_FUSED_WIDTH", 0)
    test_graphed_forward.test_fast_path_gives_the_plain_paths_losses_and_gradients(name, shape)
