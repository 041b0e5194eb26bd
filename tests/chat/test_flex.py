"""Flex attention's rule is the plain mask's rule; its arithmetic without blocks is the model's own."""

from __future__ import annotations

import pytest
import torch
from chat.test_methods import METHODS, build, close, losses, rows
from chat.tiny import FAMILIES
from torch.nn.attention.flex_attention import create_mask

from tarazu.chat import flex
from tarazu.chat.attention import visible
from tarazu.chat.layout import SHARED, group, lay_out, packed_width


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("virtual", "prefix", "packed"), [(0, 0, True), (3, 0, True), (0, 4, True), (3, 0, False)])
def test_blocks_follow_the_same_rule(window, virtual, prefix, packed):
    for lines in group(rows((30, 41, 9, 22)), 999, virtual, packed):
        batch = lay_out(lines, virtual, prefix, width=128)
        shared = torch.full((len(lines), prefix), SHARED)
        k_segments = torch.cat([shared, batch.segments], 1)
        k_positions = torch.cat([torch.arange(prefix).expand(shared.shape), batch.positions], 1)
        grid = (batch.segments, k_segments, batch.positions, k_positions)
        made = flex.block_mask(*grid, window)
        dense = create_mask(made.mask_mod, len(lines), 1, batch.segments.shape[1], k_segments.shape[1], device="cpu")
        assert torch.equal(dense[:, 0], visible(*grid, window))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["base", "lora", "prompt_tuning", "prefix_tuning"])
def test_without_blocks_it_is_the_models_own_attention(name, family):
    assert name in METHODS
    with torch.no_grad():
        expected = losses(build(name, family), rows(), 200, packed=True)
        assert close(expected, losses(build(name, family, attention=flex.NAME), rows(), 200, packed=True))


def test_packed_widths_are_few():
    widths = set()
    for seed in range(40):
        lengths = torch.randint(20, 500, (16,), generator=torch.Generator().manual_seed(seed)).tolist()
        for lines in group(rows(lengths), 4096, 0, True):
            width = packed_width(lines, 0, 4096)
            widths.add(width)
            assert width >= sum(len(row.ids) for row in lines[0]) and width % 128 == 0
    assert len(widths) <= 8
