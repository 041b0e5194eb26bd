"""Training with captured passes ends where eager training ends. Graphs are emulated on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from engine.emulated_graphs import by_running
from engine.toy_task import Toy, train

from tarazu.engine import trainer
from tarazu.engine.cuda_graphs import recorder
from tarazu.engine.cuda_graphs.recorder import GraphedFunction


class GraphedModule:
    """A module in train mode whose calls are captured and replayed."""

    training = True

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.graphed = GraphedFunction(lambda x: (module(x),), module)

    def __call__(self, x):
        return self.graphed(x)[0]

    def __getitem__(self, index):
        return self.module[index]


class GraphedToy(Toy):
    """A poisoned step adds a gradient outside the graph too."""

    graphed_module: GraphedModule | None = None

    def loss(self, model, batch):
        if not model.module.training:
            return super().loss(model, batch)
        if self.graphed_module is None or self.graphed_module.module is not model.module:
            self.graphed_module = GraphedModule(model.module)
        return super().loss(SimpleNamespace(module=self.graphed_module), batch)

    def captured_widths(self) -> list[int]:
        graphs = self.graphed_module.graphed.graphs.values()
        return [len(captured.inputs[0]) for captured in graphs]


CASES = {
    "many micro-batches": ({}, {"micro_batch_tokens": 12}),
    "out of memory": ({"memory": 20}, {"micro_batch_tokens": 64}),
    "a gradient that is not finite": ({"poison": (4,)}, {"micro_batch_tokens": 12}),
    "averaged weights": ({}, {"ema_decay": 0.9, "micro_batch_tokens": 12}),
    "sgd": ({}, {"optimizer": "sgd", "micro_batch_tokens": 12}),
}


@pytest.mark.parametrize("case", CASES)
def test_graphed_training_equals_eager_training(case, tmp_path, emulated_graphs):
    toy, settings = CASES[case]
    results, graphed_toy = [], GraphedToy(**toy)
    for name, task in (("graphed", graphed_toy), ("eager", Toy(**toy))):
        model, events, _ = train(tmp_path / name, task, **settings)
        losses = torch.tensor([event["loss"] for event in events if event["event"] == "step"])
        results.append([*model.trainable().values(), losses])
    graphed = graphed_toy.graphed_module.graphed
    assert graphed.graphs and not graphed.failure_reason
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual.detach(), expected.detach(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("failing_capture", range(1, 14, 3))
def test_capture_without_memory_halves_micro_batches_and_keeps_the_step(
    failing_capture, tmp_path, emulated_graphs, monkeypatch
):
    captures = []

    def capture_out_of_memory_once(work, pool):
        captures.append(work)
        if len(captures) == failing_capture:
            work()  # its gradients are in the buffers by now
            raise RuntimeError("CUDA out of memory")
        return by_running(work, pool)

    monkeypatch.setattr(recorder, "capture", capture_out_of_memory_once)
    graphed, events, _ = train(tmp_path / "graphed", GraphedToy(), micro_batch_tokens=16)
    eager, _, _ = train(tmp_path / "eager", micro_batch_tokens=8)
    warnings = [event["kind"] for event in events if event["event"] == "warning"]
    assert warnings.count("out_of_memory") == 1
    for a, b in zip(graphed.trainable().values(), eager.trainable().values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_out_of_memory_discards_graphs_of_larger_passes(tmp_path, emulated_graphs):
    class OutOfMemoryLater(GraphedToy):
        """Runs out of memory after the third replay."""

        def loss(self, model, batch):
            loss = super().loss(model, batch)
            if model.module.training and self.steps == 3:
                self.widths_before = self.captured_widths()
                raise RuntimeError("CUDA out of memory")
            return loss

    task = OutOfMemoryLater()
    train(tmp_path, task, micro_batch_tokens=24)
    assert max(task.widths_before) > 12 >= max(task.captured_widths())


def test_resume_with_new_graphs_is_exact(tmp_path, emulated_graphs, monkeypatch):
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    expected, _, _ = train(tmp_path / "expected", GraphedToy(), micro_batch_tokens=12)

    class Crash(Exception):
        pass

    class Crashing(GraphedToy):
        def loss(self, model, batch):
            if self.steps == 20:
                raise Crash
            return super().loss(model, batch)

    with pytest.raises(Crash):
        train(tmp_path / "crashed", Crashing(), micro_batch_tokens=12)
    resumed, _, _ = train(tmp_path / "crashed", GraphedToy(), micro_batch_tokens=12)
    for a, b in zip(resumed.trainable().values(), expected.trainable().values(), strict=True):
        assert torch.equal(a, b)
