"""A 4-bit base model: which methods train on it, that its weights stay, and its summary."""

from __future__ import annotations

import pytest
import torch
from chat import small
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tarazu.chat.cost_outline import meta_model, weight_bytes
from tarazu.chat.inference.export import export
from tarazu.chat.inference.trained_model import load as load_run
from tarazu.chat.model import loading, quantization
from tarazu.chat.model.building import wrap_model
from tarazu.chat.model.summary import model_summary
from tarazu.chat.task import Chat
from tarazu.commands import run as study_commands
from tarazu.commands.verify import run_checks
from tarazu.engine.fingerprint import fingerprint
from tarazu.errors import UserError
from tarazu.estimate.cost_model import predict
from tarazu.recipe.schema import load
from tarazu.storage.run_folder import RunDir, StudyDir

REFUSED = {"loha", "layers"}
METHODS = {name: settings for name, settings in small.METHODS.items() if name not in REFUSED}
CPU = torch.device("cpu")
installed = pytest.mark.skipif(
    not quantization.is_installed(), reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    small.save_model(folder / "model", hidden=64, inner=128)
    return folder


@pytest.fixture
def recipe(root, monkeypatch):
    """Write a recipe with a 4-bit base model and the given changes."""
    monkeypatch.setenv("TARAZU_CACHE", str(root / "cache"))

    def write(**changes):
        return small.recipe(
            root / "recipe.yaml", root / "model", **{"quantize": "4bit", "reading": None, **changes}
        )

    return write


def packed(root):
    return loading.load_model(str(root / "model"), None, torch.float32, CPU, quantize="4bit")


def test_missing_package_is_named(recipe, root, monkeypatch):
    path = recipe(methods=METHODS)
    monkeypatch.setattr(quantization, "is_installed", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'tarazu\[quantized\]'"):
        study_commands.run(str(path), str(root / "refused"))
    assert not (root / "refused").exists(), "refused before anything is written"
    Chat().validate_recipe(load(recipe(quantize="none")))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_unsupported_methods_are_refused_before_training(name, recipe, root, monkeypatch):
    monkeypatch.setattr(quantization, "is_installed", lambda: True)
    path = recipe(methods={"lora": {}, name: small.METHODS[name]})
    with pytest.raises(UserError, match=f"methods.{name}: not with quantize: 4bit"):
        study_commands.run(str(path), str(root / "refused"))
    assert not (root / "refused").exists()
    Chat().validate_recipe(
        load(
            recipe(
                methods=METHODS | {"layers": {"num_first": 0, "num_last": 0, "embeddings": True}}
            )
        )
    )


def test_check_reports_unsupported_methods(recipe, tmp_path, monkeypatch):
    loaded = load(recipe())
    data = Chat().prepare(loaded, StudyDir(tmp_path), CPU)
    monkeypatch.setattr(quantization, "is_installed", lambda: True)
    estimates = {name: predict(Chat(), loaded, name, data, CPU) for name in small.METHODS}
    assert {name for name, entry in estimates.items() if not entry["works"]} == REFUSED
    assert all("4bit" in estimates[name]["reasons"][0] for name in REFUSED)


@installed
def test_the_refusals_are_needed(root):
    """If one of these works some day, its method need not be refused."""
    methods = load(small.recipe(root / "plain.yaml", root / "model")).methods
    with pytest.raises(RuntimeError):
        methods["layers"].attach(packed(root), small.tokenizer())
    trainable = methods["loha"].attach(packed(root), small.tokenizer())
    with pytest.raises(RuntimeError):
        trainable.module(input_ids=torch.arange(9)[None])


@installed
def test_other_methods_hold_all_invariants(recipe):
    """Batching, caching, gradients, resuming, loading, and that only trained tensors change."""
    result = run_checks(load(recipe(methods=METHODS)))
    assert result["verdict"] == "ok", result
    held = {
        m["method"]: {c["name"] for c in m["checks"] if c["verdict"] == "ok"}
        for m in result["methods"]
    }
    trained = {"only trainable tensors change", "resumed = uninterrupted", "saved = loaded"}
    assert all(trained < held[name] for name in METHODS if name != "base")


@installed
@pytest.mark.parametrize("name", ["lora", "dora"])
def test_run_is_evaluated_loaded_and_merged(name, recipe, root, tmp_path):
    path = recipe(methods={name: small.METHODS[name]}, memory="low")
    study_commands.run(str(path), str(tmp_path / "out"))
    run = RunDir(tmp_path / "out" / name / "seed-0")
    assert run.read_json("fingerprint.json")["verdict"] == "ok"
    assert run.read_json("ledger.json")["code_paths"]["weights"] == "4 bits (NF4)"
    trainable, *_ = load_run(str(tmp_path / "out" / name))
    assert quantization.is_quantized(trainable.base)
    assert sorted(load_file(run.weights)) == sorted(trainable.trainable_names)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected, untouched = trainable.module(ids).logits, packed(root)(ids).logits
    export(str(tmp_path / "out" / name), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert not quantization.is_quantized(merged)
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
    assert (expected - untouched).abs().max() > 0.01, "nothing was learnt, so nothing was tested"


@installed
def test_weights_are_nf4_with_double_quantisation(root):
    model, plain = (
        packed(root),
        AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float32),
    )
    layers = {
        name: m
        for name, m in model.named_modules()
        if hasattr(getattr(m, "weight", None), "quant_state")
    }
    assert len(layers) == 4 * 7, "all linear layers but the head"
    assert all(
        m.weight.quant_state.quant_type == "nf4" and m.weight.quant_state.nested
        for m in layers.values()
    )
    dequantized = model.dequantize()
    for name in layers:
        theirs, ours = plain.get_submodule(name).weight, dequantized.get_submodule(name).weight
        assert 0 < (ours - theirs).norm() / theirs.norm() < 0.15


@installed
def test_fingerprint_notices_one_changed_byte(root):
    model = packed(root)
    before = fingerprint(model)
    with torch.no_grad():
        model(torch.arange(9)[None])
    assert fingerprint(model) == before, "the 4-bit weights were repacked"
    weight = model.get_decoder().layers[1].mlp.up_proj.weight
    weight.data[5] ^= 1
    after = fingerprint(model)
    assert [name for name in before if before[name] != after[name]] == [
        "model.layers.1.mlp.up_proj.weight"
    ]


@installed
def test_summary_and_estimated_bytes_are_those_of_the_model(recipe, root):
    model, loaded = packed(root), load(recipe(methods={"lora": {}}))
    plain = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float32)
    card, theirs = model_summary(model, "x"), model_summary(plain, "x")
    assert {k: card[k] for k in ("parameters", "parts", "tensors")} == {
        k: theirs[k] for k in ("parameters", "parts", "tensors")
    }
    assert "NF4" in card["dtype"]
    assert (
        wrap_model(loaded, "lora", model, small.tokenizer()).total_parameters() > card["parameters"]
    )
    model = packed(root)
    states = [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]
    held = [tensor for s in states for tensor in (s.absmax, s.code, s.state2.absmax, s.state2.code)]
    real = sum(t.nbytes for t in [*model.parameters(), *held])
    estimated, _ = weight_bytes(loaded, meta_model(loaded, CPU, torch.float32), torch.float32)
    assert estimated == real + 4 * len(states), (
        "the offset of each matrix's scales is the only thing not counted here"
    )
