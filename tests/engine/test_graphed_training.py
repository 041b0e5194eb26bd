"""The whole training loop over passes that are played back ends where it ends without: on a CPU, with stand-ins for recordings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from engine.emulated_graphs import by_running
from engine.toy_task import Toy, train

from tarazu.engine import trainer
from tarazu.engine.cuda_graphs import recorder
from tarazu.engine.cuda_graphs.recorder import GraphedFunction


class Played:
    """A module whose calls are played back."""

    training = True

    def __init__(self, module):
        self.module, self.recorder = module, GraphedFunction(lambda x: (module(x),), module)

    def __call__(self, x):
        return self.recorder(x)[0]

    def __getitem__(self, place):
        return self.module[place]


class Recorded(Toy):
    """A poisoned step's gradient reaches a weight past the recording as well."""

    played = None

    def loss(self, model, batch):
        if not model.module.training:
            return super().loss(model, batch)
        if self.played is None or self.played.module is not model.module:
            self.played = Played(model.module)
        return super().loss(SimpleNamespace(module=self.played), batch)


CASES = {
    "many passes a step": ({}, {"micro_batch_tokens": 12}),
    "a batch that does not fit": ({"memory": 20}, {"micro_batch_tokens": 64}),
    "a step without a finite gradient": ({"poison": (4,)}, {"micro_batch_tokens": 12}),
    "the mean of the weights": ({}, {"ema_decay": 0.9, "micro_batch_tokens": 12}),
    "sgd": ({}, {"optimizer": "sgd", "micro_batch_tokens": 12}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_loop_ends_where_it_ends_without_recordings(case, tmp_path, emulated_graphs):
    toy, settings = CASES[case]
    ends, task = [], Recorded(**toy)
    for name, one in (("played", task), ("plain", Toy(**toy))):
        model, events, _ = train(tmp_path / name, one, **settings)
        ends.append(
            [
                *model.trainable().values(),
                torch.tensor([e["loss"] for e in events if e["event"] == "step"]),
            ]
        )
    assert task.played.recorder.graphs and not task.played.recorder.failure_reason
    for mine, wanted in zip(*ends, strict=True):
        torch.testing.assert_close(mine.detach(), wanted.detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("at", range(1, 14, 3))
def test_a_recording_that_finds_no_memory_halves_the_batch_and_keeps_the_step(
    at,
    tmp_path,
    emulated_graphs,
    monkeypatch,
):
    tries = []

    def once_full(work, space):
        tries.append(work)
        if len(tries) == at:
            work()  # the gradients of this try are in their places already
            raise RuntimeError("CUDA out of memory")
        return by_running(work, space)

    monkeypatch.setattr(recorder, "capture", once_full)
    mine, events, _ = train(tmp_path / "played", Recorded(), micro_batch_tokens=16)
    wanted, _, _ = train(tmp_path / "plain", micro_batch_tokens=8)
    assert [e["kind"] for e in events if e["event"] == "warning"].count("out_of_memory") == 1
    for a, b in zip(mine.trainable().values(), wanted.trainable().values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_recordings_of_passes_that_proved_too_large_are_given_up(tmp_path, emulated_graphs):
    class Full(Recorded):
        """Out of memory after the third pass was played."""

        def loss(self, model, batch):
            found = super().loss(model, batch)
            if model.module.training and self.steps == 3:
                self.widths = [len(one.inputs[0]) for one in self.played.recorder.graphs.values()]
                raise RuntimeError("CUDA out of memory")
            return found

    task = Full()
    train(tmp_path, task, micro_batch_tokens=24)
    widths = [len(one.inputs[0]) for one in task.played.recorder.graphs.values()]
    assert max(task.widths) > 12 >= max(widths)


def test_a_run_that_is_cut_and_resumed_with_new_recordings_ends_the_same(
    tmp_path,
    emulated_graphs,
    monkeypatch,
):
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    whole, _, _ = train(tmp_path / "whole", Recorded(), micro_batch_tokens=12)

    class Cut(Exception):
        pass

    class Cutting(Recorded):
        def loss(self, model, batch):
            if self.steps == 20:
                raise Cut
            return super().loss(model, batch)

    with pytest.raises(Cut):
        train(tmp_path / "cut", Cutting(), micro_batch_tokens=12)
    resumed, _, _ = train(tmp_path / "cut", Recorded(), micro_batch_tokens=12)
    for a, b in zip(resumed.trainable().values(), whole.trainable().values(), strict=True):
        assert torch.equal(a, b)
