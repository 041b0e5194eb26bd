"""Mapping in worker processes: results, order, errors and killed workers."""

import os
import signal

import numpy as np
import pytest
import torch

from tarazu.captions.data import parallel_map as module
from tarazu.captions.data.parallel_map import parallel_map
from tarazu.errors import TarazuError, UserError


@pytest.fixture(params=["calling process", "worker processes"])
def place(request, monkeypatch):
    """Where the function runs."""
    monkeypatch.setattr(module, "_cores", lambda: 4)
    monkeypatch.setattr(module, "MIN_ITEMS", 1 if request.param == "worker processes" else 10**9)
    return request.param


def test_every_result_once_and_in_order(place):
    chunks = list(parallel_map(lambda item: (item, os.getpid()), range(43), chunk_size=5))
    assert [len(chunk) for chunk in chunks] == [5] * 8 + [3]
    assert [item for chunk in chunks for item, _ in chunk] == list(range(43))
    in_parent = {pid == os.getpid() for chunk in chunks for _, pid in chunk}
    assert in_parent == {place == "calling process"}


def test_collate_makes_one_value_of_a_chunk(place):
    def stack(arrays):
        return torch.from_numpy(np.stack(arrays))

    chunks = parallel_map(lambda item: np.full((2, 2), item), range(10), 4, stack)
    assert [chunk.shape[0] for chunk in chunks] == [4, 4, 2]


def test_no_items(place):
    assert list(parallel_map(str, [])) == []


def test_an_error_of_the_function_keeps_its_type_and_fields(place):
    def fail(item):
        raise UserError("missing", location=f"item {item}", hint="bring it back")

    with pytest.raises(UserError, match="missing") as raised:
        list(parallel_map(fail, range(20)))
    assert (raised.value.location, raised.value.hint) == ("item 0", "bring it back")


def test_other_errors_are_not_hidden(place):
    with pytest.raises(ZeroDivisionError):
        list(parallel_map(lambda item: 1 / item, range(20)))


@pytest.mark.parametrize("place", ["worker processes"], indirect=True)
def test_a_killed_worker_ends_the_map_with_an_error_and_the_next_map_works(place):
    def die(item):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TarazuError, match="was killed"):
        list(parallel_map(die, range(20)))
    assert len(list(parallel_map(str, range(20)))) == 3


def test_the_global_random_generator_is_left_alone(place):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(parallel_map(str, range(20)))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    "count, cores, workers", [(499, 16, 0), (500, 3, 0), (500, 4, 4), (500, 64, 12)]
)
def test_processes_only_for_many_items_and_enough_cores(monkeypatch, count, cores, workers):
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module, "_cores", lambda: cores)
    assert module._num_workers(count) == workers
