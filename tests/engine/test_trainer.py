"""The trainer: independent of micro-batches, no step without a finite gradient, exact resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine.toy_task import Toy, ToyData, train
from safetensors.torch import load_file

from tarazu.engine import trainer
from tarazu.engine import weights as saved_weights
from tarazu.engine.step_metrics import StepMetrics
from tarazu.engine.trainable import ParameterGroup, TrainableModel
from tarazu.errors import TarazuError


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "toy" / "seed-0" / "weights.safetensors")


def of_kind(events: list[dict], name: str, kind: str | None = None) -> list[dict]:
    """The events of a name; of warnings, those of a kind."""
    return [e for e in events if e["event"] == name and kind in (None, e.get("kind"))]


def losses(events: list[dict], name: str) -> list[float]:
    return [event["loss"] for event in of_kind(events, name)]


def test_loss_falls_and_ledger_adds_up(tmp_path):
    _, events, ledger = train(tmp_path, epochs=20)
    validations = losses(events, "validation")
    assert validations[-1] < validations[0] - 0.3
    tokens = of_kind(events, "step")[-1]["tokens"]
    assert tokens == ledger.counts.tokens == ledger.as_json()["tokens"]["tokens"]
    assert ledger.seconds["train"] > 0 and ledger.memory["resident"] > 0


def test_step_does_not_depend_on_micro_batches(tmp_path):
    train(tmp_path / "full")
    expected = weights(tmp_path / "full")
    for limit in (1, 9, 20):
        train(tmp_path / str(limit), micro_batch_tokens=limit)
        actual = weights(tmp_path / str(limit))
        assert all(torch.allclose(expected[k], actual[k], atol=2e-5) for k in expected), limit


def test_out_of_memory_halves_micro_batches_and_keeps_the_step(tmp_path):
    _, events, _ = train(tmp_path / "oom", Toy(memory=1), micro_batch_tokens=64)
    assert of_kind(events, "warning", "out_of_memory"), "no warning was written"
    train(tmp_path / "expected", micro_batch_tokens=1)
    actual, expected = weights(tmp_path / "oom"), weights(tmp_path / "expected")
    assert all(torch.allclose(expected[k], actual[k], atol=2e-5) for k in expected)
    assert len(of_kind(events, "step")) == 15


def test_row_that_does_not_fit_is_an_error_with_a_hint(tmp_path):
    class TooBig(Toy):
        def loss(self, model, batch):
            if model.module.training:
                raise torch.OutOfMemoryError("out of memory")
            return super().loss(model, batch)

    with pytest.raises(TarazuError, match="max_length"):
        train(tmp_path, TooBig())


def test_infinite_gradient_is_never_applied(tmp_path):
    _, events, _ = train(tmp_path, Toy(poison=(3,)))
    assert [event["step"] for event in of_kind(events, "warning", "skipped")] == [2]
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def test_run_without_finite_gradients_fails(tmp_path):
    with pytest.raises(TarazuError, match="10 steps in a row"):
        train(tmp_path, Toy(poison=tuple(range(1, 99))))


@pytest.mark.parametrize(
    ("optimizer", "ema_decay"), [("adamw", 0.0), ("adamw", 0.9), ("sgd", 0.0), ("rmsprop", 0.0)]
)
def test_run_that_crashes_often_resumes_exactly(tmp_path, monkeypatch, optimizer, ema_decay):
    """It crashes after 1, 2 or 3 steps, also between validations, and ends with equal bytes."""
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    settings = {"optimizer": optimizer, "ema_decay": ema_decay}
    _, events, _ = train(tmp_path / "expected", Toy(dropout=0.3), **settings)

    class Crash(Exception):
        pass

    class Crashing(Toy):
        def loss(self, model, batch):
            self.batches_left -= model.module.training
            if self.batches_left < 0:
                raise Crash
            return super().loss(model, batch)

    path, task = tmp_path / "crashing", Crashing(dropout=0.3)
    for attempt in range(99):
        task.batches_left = 1 + attempt % 3
        try:
            _, resumed_events, _ = train(path, task, **settings)
            break
        except Crash:
            continue
    expected, actual = weights(tmp_path / "expected"), weights(path)
    assert attempt >= 5 and all(torch.equal(expected[k], actual[k]) for k in expected)
    logs = [
        [(e["event"], e.get("step"), e.get("loss")) for e in log if e["event"] != "warning"]
        for log in (events, resumed_events)
    ]
    assert logs[0] == logs[1]


def test_early_stop_keeps_the_best_weights(tmp_path):
    _, events, _ = train(
        tmp_path,
        model=Toy().build(rate=1.5),
        epochs=30,
        keep="best",
        patience=3,
        schedule="constant",
    )
    validations = losses(events, "validation")
    assert of_kind(events, "warning", "early_stop") and len(validations) < 31
    best = Toy().build()
    saved_weights.restore(best, weights(tmp_path))
    best.module.eval()
    loss = Toy().validate(best, ToyData(), None)["loss"]
    assert loss == pytest.approx(min(validations), abs=1e-5)


def test_average_is_the_mean_of_the_steps(tmp_path, monkeypatch):
    """The average is validated and kept; training itself does not see it."""
    weights_of_steps, step = [], trainer.Trainer.step

    def recorded_step(self, bar):
        step(self, bar)
        weights_of_steps.append(self.model.module[2].weight.detach().clone())

    monkeypatch.setattr(trainer.Trainer, "step", recorded_step)
    model = Toy().build()
    mean = model.module[2].weight.detach().clone()
    _, events, _ = train(tmp_path / "mean", model=model, ema_decay=0.8)
    for number, weight in enumerate(weights_of_steps, 1):
        decay = min(0.8, (1 + number) / (10 + number))
        mean = decay * mean + (1 - decay) * weight
    torch.testing.assert_close(model.module[2].weight.detach(), mean, atol=1e-6, rtol=1e-5)
    assert torch.equal(weights(tmp_path / "mean")["2.weight"], model.module[2].weight)
    model.module.eval()
    loss = Toy().validate(model, ToyData(), None)["loss"]
    assert loss == pytest.approx(losses(events, "validation")[-1], abs=1e-6)
    _, events_without, _ = train(tmp_path / "without")
    assert losses(events_without, "step") == losses(events, "step")
    assert torch.equal(weights(tmp_path / "without")["2.weight"], weights_of_steps[-1])


def model_with_late_embedding(rate: float, embedding_rate: float) -> TrainableModel:
    """The embedding trains from epoch 2 on."""
    model = Toy().build(rate=rate)
    model.groups = [ParameterGroup(frozenset({"0.weight"}), embedding_rate, from_epoch=2)]
    return model


def test_group_that_starts_late_is_frozen_until_then(tmp_path):
    model = model_with_late_embedding(0.05, 0.01)
    start = model.module[0].weight.detach().clone()
    train(tmp_path / "before", Toy(), model, epochs=2)
    assert torch.equal(start, model.module[0].weight)
    assert model.not_yet_trained() == {"0.weight"}
    model = model_with_late_embedding(0.05, 0.01)
    train(tmp_path / "after", Toy(), model, epochs=3)
    assert not torch.equal(start, model.module[0].weight) and not model.not_yet_trained()


def test_best_weights_from_before_a_group_started_are_known_as_such(tmp_path):
    """Otherwise the proof would ask that tensors changed which these weights never trained."""
    model = model_with_late_embedding(0.02, 50.0)  # a rate at which the loss only rises
    train(tmp_path, Toy(), model, epochs=4, keep="best", schedule="constant")
    assert model.not_yet_trained() == {"0.weight"}


@pytest.mark.parametrize("poison", [(), (3, 7)])
def test_reading_metrics_late_changes_nothing(tmp_path, monkeypatch, poison):
    """A fused optimizer skips a bad step itself, so that the metrics can be read one step late."""
    adamw, add = torch.optim.AdamW, StepMetrics.add
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **k: adamw(*a, **{**k, "fused": True}))
    _, late, _ = train(tmp_path / "late", Toy(poison=poison))
    monkeypatch.setattr(StepMetrics, "add", lambda self, step, read_late: add(self, step, False))
    _, prompt, _ = train(tmp_path / "prompt", Toy(poison=poison))
    expected, actual = weights(tmp_path / "prompt"), weights(tmp_path / "late")
    assert all(torch.equal(expected[k], actual[k]) for k in expected)

    def untimed(events: list[dict]) -> list[str]:
        timed = {"seconds", "tokens_per_second"}
        kept = of_kind(events, "step") + of_kind(events, "warning")
        return sorted(str({k: v for k, v in e.items() if k not in timed}) for e in kept)

    assert untimed(late) == untimed(prompt)
    assert len(of_kind(late, "warning")) == len(poison)
    assert [event["step"] for event in of_kind(late, "step")] == list(range(1, 16))
