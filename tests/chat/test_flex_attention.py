"""Block masks follow the dense mask's rule; without blocks the attention equals the model's own."""

from __future__ import annotations

import pytest
import torch
from chat.test_methods import METHODS, build, close, losses, rows
from chat.tiny import FAMILIES
from torch.nn.attention.flex_attention import create_mask, flex_attention

from tarazu.chat.fast import compile_layers, lightweight_adapters
from tarazu.chat.model import flex_attention as flex
from tarazu.chat.model.attention_mask import visibility_mask
from tarazu.chat.model.batching import SHARED, bin_pack, make_batch, pack_rows
from tarazu.chat.model.forward import hidden_states
from tarazu.chat.model.loss import token_losses

LENGTHS = (300, 41, 9, 22, 130, 128, 260, 77)


@pytest.mark.parametrize("window", [None, 7, 150])
@pytest.mark.parametrize(("left", "block"), [(False, 128), (True, 128), (False, 64)])
@pytest.mark.parametrize(
    ("virtual", "prefix", "packed"),
    [(0, 0, True), (3, 0, True), (0, 4, True), (3, 0, False), (0, 130, False)],
)
def test_block_mask_equals_dense_mask(window, virtual, prefix, packed, left, block):
    for lines in bin_pack(rows(LENGTHS), 640, virtual, packed):
        batch = make_batch(lines, virtual, prefix, width=768, pad_left=left)
        shared = torch.full((len(lines), prefix), SHARED)
        k_segments = torch.cat([shared, batch.segments], 1)
        k_positions = torch.cat([torch.arange(prefix).expand(shared.shape), batch.positions], 1)
        expected = visibility_mask(batch.segments, k_segments, batch.positions, k_positions, window)
        made = flex.block_mask(batch.segments, batch.positions, prefix, window, block)
        num_positions = flex.padded_prefix_length(prefix, block)
        dense = create_mask(made.mask_mod, len(lines), 1, 768, 768 + num_positions, device="cpu")[
            :, 0
        ]
        assert not dense[:, :, prefix:num_positions].any(), "the padding of the prefix is visible"
        real = batch.segments >= 0
        seen = torch.cat([dense[:, :, :prefix], dense[:, :, num_positions:]], 2)
        assert torch.equal(seen[real], expected[real])
        assert seen.any(-1).all(), "a softmax over no key is NaN"
        check_blocks(made, dense, block)


def check_blocks(made, dense: torch.Tensor, block: int) -> None:
    """Full blocks are visible, unlisted ones hidden, and the backward pass has the same blocks."""
    partial, full = (
        as_grid(*pair)
        for pair in (
            (made.kv_num_blocks, made.kv_indices),
            (made.full_kv_num_blocks, made.full_kv_indices),
        )
    )
    tiles = dense.unflatten(1, (-1, block)).unflatten(3, (-1, block)).transpose(2, 3)
    assert tiles[full].all() and not tiles[~(full | partial)].any() and not (full & partial).any()
    assert torch.equal(as_grid(made.q_num_blocks, made.q_indices), partial.transpose(1, 2))
    assert torch.equal(as_grid(made.full_q_num_blocks, made.full_q_indices), full.transpose(1, 2))


def as_grid(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """(B, rows, columns) bool from a block mask's lists."""
    out = torch.zeros(indices[:, 0].shape, dtype=torch.bool)
    for b, row in torch.cartesian_prod(
        torch.arange(out.shape[0]), torch.arange(out.shape[1])
    ).tolist():
        out[b, row, indices[b, 0, row, : counts[b, 0, row]].long()] = True
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["base", "lora", "prompt_tuning", "prefix_tuning"])
def test_without_blocks_attention_equals_the_models_own(name, family):
    assert name in METHODS
    with torch.no_grad():
        expected = losses(build(name, family), rows(), 200, packed=True)
        assert close(
            expected, losses(build(name, family, attention=flex.NAME), rows(), 200, packed=True)
        )


@pytest.mark.parametrize(
    ("limit", "shorter", "min_filled"),
    [
        (12288, False, 0.97),
        (12288, True, 0.993),
        (8192, False, 0.98),
        (8192, True, 0.989),
        (4096, True, 0.988),
        (2048, False, 0.98),
    ],
)
def test_packed_widths_are_few_and_lines_full(limit, shorter, min_filled):
    """Steps of 32 rows: every row is there once, widths are few and little is padding."""
    widths, num_positions, tokens = set(), 0, 0
    for seed in range(60):
        lengths = (
            (torch.randn(32, generator=torch.Generator().manual_seed(seed)) * 0.8 + 6.1)
            .exp()
            .clamp(48, min(limit, 2048))
            .int()
            .tolist()
        )
        batches = pack_rows(rows(lengths), limit, 0, shorter)
        assert sorted(row.index for lines, *_ in batches for row in lines[0]) == list(range(32))
        for lines, width, widest in batches:
            used = sum(len(row.ids) for row in lines[0])
            assert widest >= width >= used and width % 128 == 0 and widest in (width, limit)
            widths.add(width)
            num_positions, tokens = num_positions + width, tokens + used
            assert used <= limit or len(lines[0]) == 1
        assert sum(width for _, width, _ in batches) <= sum(
            width for _, width, _ in pack_rows(rows(lengths), limit, 0)
        )
    assert len(widths) <= 16 + 5 * shorter and tokens / num_positions > min_filled


def test_row_beyond_the_limit_has_its_own_line():
    (long, wide, _), (short, narrow, _) = pack_rows(rows((1100, 300)), 1000, 4)
    assert [len(row.ids) for row in long[0]] == [1100] and wide == 1152
    assert [len(row.ids) for row in short[0]] == [300] and narrow == 384
    assert pack_rows([], 1000, 0) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_block_masks_give_the_same_losses(name, family, monkeypatch):
    """The path of a GPU, with a prefix for each layer; on a CPU flex attention runs eagerly."""
    given = rows((90, 41, 9, 22))
    with torch.no_grad():
        expected = losses(build(name, family), given, 200, packed=True)
        monkeypatch.setattr(flex, "is_block_aligned", lambda queries, device: True)
        monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
        model = build(name, family, attention=flex.NAME)
        compile_layers.wrap_layers(model.base)
        calls = []
        monkeypatch.setattr(
            flex, "block_mask", lambda *a, make=flex.block_mask: calls.append(a) or make(*a)
        )
        assert close(expected, losses(model, given, 200, packed=True, width=256), 1e-4)
        assert calls, "blocks were not used"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora", "gemma2"),
        ("prefix_tuning", "gemma2"),
        ("lora", "gemma3"),
        ("dora", "llama"),
        ("loha", "llama"),
        ("layers", "gemma3"),
    ],
)
def test_compiled_layers_and_checkpointing_give_the_plain_paths_gradients(
    name, family, monkeypatch
):
    """Layers are traced as by the compiler and run eagerly. A prefix is checkpointed, too."""
    expected = gradients(build(name, family))
    monkeypatch.setattr(flex, "is_block_aligned", lambda queries, device: True)
    # It refuses a CPU, though the arithmetic works there.
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)
    for checkpointing in (False, True):
        model = build(name, family, attention=flex.NAME)
        lightweight_adapters.use_lightweight_forward(model.base)
        compile_layers.wrap_layers(
            model.base, checkpointing, lambda forward: torch.compile(forward, backend="aot_eager")
        )
        actual = gradients(model)
        assert actual.keys() == expected.keys()
        assert all(
            torch.allclose(actual[key], expected[key], atol=1e-4, rtol=1e-3) for key in actual
        )


def gradients(model) -> dict[str, torch.Tensor]:
    """Gradients of the summed loss of two packed rows."""
    model.module.train()
    batch = make_batch([rows((90, 41))], prefix_length=model.prefix_length, width=256)
    hidden = hidden_states(model, batch).flatten(0, 1).index_select(0, batch.label_positions)
    token_losses(model.base, hidden, batch.labels).sum().backward()
    return {key: parameter.grad.clone() for key, parameter in model.trainable().items()}


@pytest.mark.parametrize("half", [False, True])
def test_capped_scores_and_their_gradients(half):
    """Both ways to compute softcap * tanh(score / softcap), exactly and approximately."""
    actual = []
    for capped in (flex._capped(50.0, half), lambda score, *_: 50.0 * torch.tanh(score / 50.0)):
        score = torch.linspace(-200, 200, 41, requires_grad=True)
        out = torch.vmap(capped, in_dims=(0, None, None, None, None))(score, 0, 0, 0, 0)
        out.sum().backward()
        actual.append((out.detach(), score.grad))
    for mine, wanted in zip(*actual, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
