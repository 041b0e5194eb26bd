"""Hashes of tensors, and the proof of what changed."""

from __future__ import annotations

import math

import pytest
import torch

from tarazu.engine.fingerprint import compare, fingerprint, require_ok
from tarazu.errors import TarazuError


def test_one_changed_bit_and_an_unchanged_trainable_tensor_are_found():
    module = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30))
    before = fingerprint(module)
    assert before == fingerprint(module)
    module[1].running_mean[3] = math.ulp(0.0) + 1e-40  # a denormal, which allclose would not see
    proof = compare(before, fingerprint(module), frozenset({"0.weight"}))
    assert proof["unexpectedly_changed"] == ["1.running_mean"]
    assert proof["unexpectedly_unchanged"] == ["0.weight"]
    with pytest.raises(TarazuError, match=r"1\.running_mean.*0\.weight"):
        require_ok(proof, "here")
    only_unchanged = {**proof, "unexpectedly_changed": []}
    hint = r"did not change: 0\.weight(?s:.*)after a single step give a larger budget"
    with pytest.raises(TarazuError, match=hint):
        require_ok(only_unchanged, "here")


def test_shape_is_part_of_the_hash():
    a, b = torch.nn.Module(), torch.nn.Module()
    a.register_buffer("x", torch.zeros(4, 2))
    b.register_buffer("x", torch.zeros(2, 4))
    assert fingerprint(a) != fingerprint(b)
