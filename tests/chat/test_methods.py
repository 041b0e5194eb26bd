"""Every method on every family: losses, gradients, generation, starting points, saved weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chat.tiny import FAMILIES, VOCABULARY, Words, model

from tarazu.chat.evaluation.generation import generate
from tarazu.chat.methods import (
    Base,
    DoRA,
    Layers,
    LoHa,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    RsLoRA,
)
from tarazu.chat.model.batching import TokenizedRow, bin_pack, make_batch
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.loss import token_losses
from tarazu.engine import weights
from tarazu.engine.fingerprint import compare, fingerprint
from tarazu.errors import UserError

METHODS = {
    "base": Base(),
    "prompt_tuning": PromptTuning(num_virtual_tokens=5),
    "prompt_tuning_vocabulary": PromptTuning(num_virtual_tokens=5, init="vocabulary"),
    "prefix_tuning": PrefixTuning(num_virtual_tokens=4),
    "prefix_tuning_projection": PrefixTuning(
        num_virtual_tokens=4, projection=True, projection_width=16
    ),
    "p_tuning": PTuning(num_virtual_tokens=5, encoder_width=16),
    "lora": LoRA(rank=4),
    "rslora": RsLoRA(rank=4),
    "dora": DoRA(rank=4),
    "loha": LoHa(rank=4),
    "layers": Layers(num_first=1, num_last=2),
}
TRAINED = [name for name in METHODS if name != "base"]
SOFT = {"prompt_tuning", "prompt_tuning_vocabulary", "p_tuning"}


def build(name: str, family: str, seed: int = 1, shake: bool = True, **options):
    """A small model; `shake` moves trained tensors off their start, so that each matters."""
    base = model(family, **options)
    torch.manual_seed(seed)
    trainable = METHODS[name].attach(base, Words())
    if shake:
        with torch.no_grad():
            for parameter in trainable.trainable().values():
                parameter.add_(0.05 * torch.randn_like(parameter))
    trainable.module.eval()
    return trainable


def rows(lengths=(9, 17, 5, 23), seed: int = 0) -> list[TokenizedRow]:
    random = np.random.default_rng(seed)
    out = []
    for i, n in enumerate(lengths):
        supervised = random.random(n) < 0.5
        supervised[-1] = True
        supervised[0] = False
        out.append(TokenizedRow(random.integers(3, VOCABULARY, n), supervised, i))
    return out


def losses(
    trainable, rows: list[TokenizedRow], limit: int, packed: bool, width: int | None = None
) -> dict[int, list[float]]:
    """Nats of every supervised token, by row."""
    prefix = trainable.prefix_length
    virtual = trainable.prompt_length
    out = {}
    for lines in bin_pack(rows, limit, virtual, packed):
        batch = make_batch(lines, virtual, prefix, width=width)
        values = token_losses(
            trainable.base,
            hidden_states(trainable, batch).flatten(0, 1)[batch.label_positions],
            batch.labels,
        )
        for row, value in zip(batch.label_rows.tolist(), values.tolist(), strict=True):
            out.setdefault(row, []).append(value)
    return out


def close(a: dict, b: dict, tolerance: float = 2e-5) -> bool:
    return all(np.allclose(a[i], b[i], atol=tolerance) for i in a) and a.keys() == b.keys()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_packed_padded_and_single_rows_agree(name, family):
    with torch.no_grad():
        trainable = build(name, family)
        single = losses(trainable, rows(), 1, packed=False)
        assert close(single, losses(trainable, rows(), 200, packed=False)), (
            "padding changes the loss"
        )
        assert close(single, losses(trainable, rows(), 200, packed=True)), (
            "packed rows see each other"
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_equals_the_models_own_forward(name, family):
    """One unpadded row through peft's (or the model's) own forward gives the same losses."""
    trainable = build(name, family)
    # With a prefix the rows stay within the sliding window: peft's cache drops what is beyond it.
    for row in rows((9, 10)):
        ids = torch.from_numpy(row.ids)[None]
        with torch.no_grad():
            logits = trainable.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        logits = logits[len(logits) - len(row.ids) :]
        labels = np.flatnonzero(row.supervised)
        expected = torch.nn.functional.cross_entropy(
            logits[labels - 1], ids[0, labels], reduction="none"
        )
        with torch.no_grad():
            assert np.allclose(losses(trainable, [row], 99, False)[row.index], expected, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_generation_in_a_batch_equals_single_prompts(name, family):
    """Left padding changes nothing, and cached steps equal a forward pass over all tokens."""
    trainable = build(name, family)
    prompts = [row.ids.tolist() for row in rows((3, 11, 7))]
    answers = generate(trainable, prompts, set(), 12)
    assert answers == [generate(trainable, [p], set(), 12)[0] for p in prompts]
    assert answers == generate(trainable, prompts, set(), 12, use_cuda_graph=True), (
        "graphed decoding gives other tokens"
    )
    stop = {answers[1].ids[4]}
    assert generate(trainable, prompts, stop, 12) == generate(
        trainable, prompts, stop, 12, use_cuda_graph=True
    )
    prefix = trainable.prefix_length
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = np.array(prompt + answer.ids)
        batch = make_batch(
            [[TokenizedRow(ids, np.zeros(len(ids), bool))]], trainable.prompt_length, prefix
        )
        with torch.no_grad():
            logits = trainable.base.lm_head(hidden_states(trainable, batch)[0])
        assert logits.argmax(-1)[-len(answer.ids) - 1 : -1].tolist() == answer.ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["base", "lora", "layers"])
def test_generation_equals_transformers(name, family):
    trainable = build(name, family)
    prompts = [row.ids.tolist() for row in rows((3, 11, 7))]
    ours = generate(trainable, prompts, {1}, 10)
    for prompt, answer in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = trainable.module.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=1,
            pad_token_id=0,
        )
        assert theirs[0, len(prompt) :].tolist()[: len(answer.ids)] == answer.ids


@pytest.mark.parametrize("name", TRAINED)
def test_only_the_named_tensors_change_and_gradients_do_not_depend_on_the_batching(name):
    """One optimizer step; packed, padded and single rows give the same gradient."""
    gradients = []
    for limit, packed in ((1, False), (200, False), (200, True)):
        trainable = build(name, "gemma3")
        prefix = trainable.prefix_length
        for lines in bin_pack(rows(), limit, trainable.prompt_length, packed):
            batch = make_batch(lines, trainable.prompt_length, prefix)
            token_losses(
                trainable.base,
                hidden_states(trainable, batch).flatten(0, 1)[batch.label_positions],
                batch.labels,
            ).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in trainable.trainable().items()})
    for other in gradients[1:]:
        for key, value in gradients[0].items():
            assert torch.allclose(
                value, other[key], atol=1e-3 * max(1.0, value.abs().max().item())
            ), key
    before = fingerprint(trainable.module)
    torch.optim.AdamW(list(trainable.trainable().values()), lr=1e-3).step()
    proof = compare(before, fingerprint(trainable.module), trainable.trainable_names)
    assert proof["verdict"] == "ok" and proof["changed"] == sorted(trainable.trainable_names)
    assert all(
        p.grad is None
        for n, p in trainable.module.named_parameters()
        if n not in trainable.trainable_names
    )


@pytest.mark.parametrize("name", TRAINED)
def test_saved_and_loaded_gives_the_same_losses(name):
    """All trained tensors are restored. peft restores 0 of the 7 of p-tuning, silently."""
    with torch.no_grad():
        first = build(name, "llama")
        expected = losses(first, rows(), 200, packed=True)
        saved = {key: value.clone() for key, value in first.trainable().items()}
        second = build(name, "llama", seed=7)
        assert not close(expected, losses(second, rows(), 200, packed=True))
        weights.restore(second, saved)
        assert close(expected, losses(second, rows(), 200, packed=True), 0)


@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "loha"])
def test_low_rank_methods_start_as_the_base_model(name):
    with torch.no_grad():
        base = losses(build("base", "gemma2"), rows(), 200, packed=True)
        start = losses(build(name, "gemma2", shake=False), rows(), 200, packed=True)
        assert close(base, start, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["prompt_tuning", "p_tuning"])
def test_soft_prompts_start_at_the_scale_of_embeddings(name, family):
    """peft's random start is about 50 times larger. Gemma 3 scales inside the embedding module."""
    trainable = build(name, family, shake=False)
    embeddings = trainable.base.get_input_embeddings()(torch.arange(VOCABULARY))
    assert 0.3 < (trainable.prompt().std() / embeddings.std()).item() < 3


def test_prefix_starts_as_the_models_own_keys_and_values():
    """A prefix made from a text has the effect of that text before the row."""
    trainable = build("prefix_tuning", "llama", shake=False)
    base = build("base", "llama")
    from tarazu.chat.methods.prompt_tuning import INSTRUCTION
    from tarazu.chat.model.trainable import initial_token_ids

    text = initial_token_ids(Words(), INSTRUCTION, 4).numpy()
    row = rows((9,))[0]
    with_text = TokenizedRow(
        np.concatenate([text, row.ids]), np.concatenate([np.zeros(4, bool), row.supervised])
    )
    with torch.no_grad():
        assert close(losses(trainable, [row], 99, False), losses(base, [with_text], 99, False))


def test_layers_unfreeze_only_the_chosen_parts():
    trainable = build("layers", "llama")
    blocks = {name.split(".layers.")[1].split(".")[0] for name in trainable.trainable_names}
    assert blocks == {"0", "4", "5"}
    all_parts = Layers(
        num_first=1, num_last=0, embeddings=True, final_norm=True, lm_head=True
    ).attach(model("llama"), Words())
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert expected < all_parts.trainable_names
    with pytest.raises(UserError, match="tied"):
        Layers(lm_head=True).attach(model("gemma3"), Words())
    with pytest.raises(UserError, match="of 6 layers"):
        Layers(num_first=4, num_last=4).attach(model("llama"), Words())


def test_unknown_targets_name_the_nearest():
    with pytest.raises(UserError, match="q_proj"):
        LoRA(targets=["q_prog"]).attach(model("llama"), Words())


@pytest.mark.parametrize("name", [name for name in TRAINED if not name.startswith("prefix")])
def test_gradient_checkpointing_changes_nothing(name):
    """Not for prefix tuning: there transformers drops the cache, and with it the prefix."""
    gradients = []
    for checkpointed in (False, True):
        trainable = build(name, "llama")
        if checkpointed:
            trainable.base.gradient_checkpointing_enable({"use_reentrant": False})
        trainable.module.train()
        for lines in bin_pack(rows(), 200, trainable.num_virtual_tokens, True):
            batch = make_batch(lines, trainable.num_virtual_tokens)
            token_losses(
                trainable.base,
                hidden_states(trainable, batch).flatten(0, 1)[batch.label_positions],
                batch.labels,
            ).sum().backward()
        gradients.append({n: p.grad for n, p in trainable.trainable().items()})
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-5) for n in gradients[0])
