"""The loop: exact under any cut into micro-batches, never applies a gradient that is not finite, resumes exactly."""

from __future__ import annotations

import pytest
import torch
from engine.toy_task import Toy, ToyData, train
from safetensors.torch import load_file

from tarazu.engine import checkpoint, trainer
from tarazu.engine import weights as saved_weights
from tarazu.engine.trainable import ParameterGroup
from tarazu.errors import TarazuError


def weights(path) -> dict[str, torch.Tensor]:
    return load_file(path / "toy" / "seed-0" / "weights.safetensors")


def test_the_loss_falls_and_the_ledger_adds_up(tmp_path):
    _, events, ledger = train(tmp_path, epochs=20)
    validations = [e["loss"] for e in events if e["event"] == "validation"]
    assert validations[-1] < validations[0] - 0.3
    steps = [e for e in events if e["event"] == "step"]
    assert steps[-1]["tokens"] == ledger.counts.tokens == ledger.as_json()["tokens"]["tokens"]
    assert ledger.seconds["train"] > 0 and ledger.memory["resident"] > 0


def test_a_step_does_not_depend_on_its_micro_batches(tmp_path):
    train(tmp_path / "whole")
    for limit in (1, 9, 20):
        train(tmp_path / str(limit), micro_batch_tokens=limit)
        a, b = weights(tmp_path / "whole"), weights(tmp_path / str(limit))
        assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in a), limit


def test_out_of_memory_halves_the_batch_and_keeps_the_step(tmp_path):
    task = Toy(memory=1)
    _, events, _ = train(tmp_path / "a", task, micro_batch_tokens=64)
    warned = [e for e in events if e["event"] == "warning" and e["kind"] == "out_of_memory"]
    assert warned, "no warning was written"
    train(tmp_path / "b", micro_batch_tokens=1)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.allclose(a[name], b[name], atol=2e-5) for name in a), (
        "the effective batch changed"
    )
    assert sum(e["event"] == "step" for e in events) == 15


def test_one_row_that_does_not_fit_is_an_error_that_says_what_to_do(tmp_path):
    class TooBig(Toy):
        def loss(self, model, batch):
            if model.module.training:
                raise torch.OutOfMemoryError("out of memory")
            return super().loss(model, batch)

    with pytest.raises(TarazuError, match="max_length"):
        train(tmp_path, TooBig())


def test_an_infinite_gradient_is_never_applied(tmp_path):
    seen = []

    class Watched(Toy):
        def collate(self, model, data, split, rows, limit):
            seen.append({n: p.detach().clone() for n, p in model.module.named_parameters()})
            return super().collate(model, data, split, rows, limit)

    _, events, _ = train(tmp_path, Watched(poison=(3,)))
    skipped = [e for e in events if e["event"] == "warning" and e["kind"] == "skipped"]
    assert [e["step"] for e in skipped] == [2]
    assert all(torch.isfinite(t).all() for t in weights(tmp_path).values())
    with pytest.raises(TarazuError, match="10 steps in a row"):
        train(tmp_path / "all", Toy(poison=tuple(range(1, 99))))


@pytest.mark.parametrize(
    "optimizer, average", [("adamw", 0.0), ("adamw", 0.9), ("sgd", 0.0), ("rmsprop", 0.0)]
)
def test_a_run_cut_anywhere_ends_the_same(tmp_path, monkeypatch, optimizer, average):
    """Cut at every step once, also between validations; the end is equal byte for byte, and so is the event log's length."""
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)
    _, events, _ = train(tmp_path / "whole", Toy(dropout=0.3), optimizer=optimizer, ema_decay=average)

    class Cut(Exception):
        pass

    class Cutting(Toy):
        def loss(self, model, batch):
            self.left -= model.module.training
            if self.left < 0:
                raise Cut
            return super().loss(model, batch)

    path, task = tmp_path / "cut", Cutting(dropout=0.3)
    for i in range(99):
        task.left = 1 + i % 3
        try:
            _, again, _ = train(path, task, optimizer=optimizer, ema_decay=average)
            break
        except Cut:
            continue
    a, b = weights(tmp_path / "whole"), weights(path)
    assert i >= 5 and all(torch.equal(a[name], b[name]) for name in a)
    kept = [(e["event"], e.get("step"), e.get("loss")) for e in again if e["event"] != "warning"]
    assert kept == [
        (e["event"], e.get("step"), e.get("loss")) for e in events if e["event"] != "warning"
    ]


def test_early_stop_and_best_weights(tmp_path):
    _, events, _ = train(
        tmp_path,
        Toy(),
        Toy().build(rate=1.5),
        epochs=30,
        keep="best",
        patience=3,
        schedule="constant",
    )
    losses = [e["loss"] for e in events if e["event"] == "validation"]
    assert any(e.get("kind") == "early_stop" for e in events) and len(losses) < 31
    best = Toy().build()
    saved_weights.restore(best, weights(tmp_path))
    best.module.eval()
    assert Toy().validate(best, ToyData(), None)["loss"] == pytest.approx(min(losses), abs=1e-5)


def test_averaged_weights_are_the_mean_of_the_steps(tmp_path, monkeypatch):
    """What is validated and kept is the mean, by hand; training itself goes on as without it."""
    steps, step = [], trainer.Trainer.step

    def seen(self, bar):
        step(self, bar)
        steps.append(self.model.module[2].weight.detach().clone())

    monkeypatch.setattr(trainer.Trainer, "step", seen)
    model = Toy().build()
    mean = model.module[2].weight.detach().clone()
    _, events, _ = train(tmp_path / "mean", model=model, ema_decay=0.8)
    for number, weight in enumerate(steps, 1):
        keep = min(0.8, (1 + number) / (10 + number))
        mean = keep * mean + (1 - keep) * weight
    torch.testing.assert_close(model.module[2].weight.detach(), mean, atol=1e-6, rtol=1e-5)
    assert torch.equal(weights(tmp_path / "mean")["2.weight"], model.module[2].weight)
    model.module.eval()
    last = [e["loss"] for e in events if e["event"] == "validation"][-1]
    assert Toy().validate(model, ToyData(), None)["loss"] == pytest.approx(last, abs=1e-6)
    _, plain, _ = train(tmp_path / "plain")
    assert [e["loss"] for e in plain if e["event"] == "step"] == [
        e["loss"] for e in events if e["event"] == "step"
    ]
    assert torch.equal(weights(tmp_path / "plain")["2.weight"], steps[-1])


def test_a_group_that_begins_late_stands_still_until_then(tmp_path):
    model = Toy().build(rate=0.05)
    model.groups = [ParameterGroup(frozenset({"0.weight"}), 0.01, from_epoch=2)]
    start = model.module[0].weight.detach().clone()
    _, events, _ = train(tmp_path / "early", Toy(), model, epochs=2)
    assert torch.equal(start, model.module[0].weight) and model.not_yet_trained() == {"0.weight"}
    model = Toy().build(rate=0.05)
    model.groups = [ParameterGroup(frozenset({"0.weight"}), 0.01, from_epoch=2)]
    train(tmp_path / "late", Toy(), model, epochs=3)
    assert not torch.equal(start, model.module[0].weight) and not model.not_yet_trained()


def test_best_weights_from_before_a_group_began_say_so(tmp_path):
    """The proof must not ask that tensors moved whose turn came after the weights that were kept."""
    model = Toy().build(rate=0.02)
    model.groups = [
        ParameterGroup(frozenset({"0.weight"}), 50.0, from_epoch=2)
    ]  # from then on it only gets worse
    train(tmp_path, Toy(), model, epochs=4, keep="best", schedule="constant")
    assert model.not_yet_trained() == {"0.weight"}


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    folder = tmp_path / "checkpoint"
    for step in (1, 2, 3):
        checkpoint.save(
            folder, step, {"weights": {"w": torch.full((1000,), float(step))}}, {"step": step}
        )
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000003"]
    newest = folder / "step-00000003" / "weights.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1  # safetensors itself would open this happily
    newest.write_bytes(data)
    tensors, state, complaints = checkpoint.load(folder)
    assert state["step"] == 2 and tensors["weights"]["w"][0] == 2 and "sha256" in complaints[0]
    (folder / "step-00000002" / "manifest.json").unlink()
    with pytest.raises(TarazuError, match="no checkpoint is intact"):
        checkpoint.load(folder)
    assert checkpoint.load(tmp_path / "nothing") is None


@pytest.mark.parametrize("poison", [(), (3, 7)])
def test_reading_a_steps_figures_late_changes_nothing(tmp_path, monkeypatch, poison):
    """The fused optimizer leaves a bad step out by itself; weights, steps and warnings are those of waiting for each step."""
    build = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, **k: build(*a, **{**k, "fused": True}))
    _, late, _ = train(tmp_path / "late", Toy(poison=poison))
    monkeypatch.setattr(
        trainer.Figures,
        "add",
        lambda self, done, late, add=trainer.Figures.add: add(self, done, False),
    )
    _, prompt, _ = train(tmp_path / "prompt", Toy(poison=poison))
    a, b = weights(tmp_path / "late"), weights(tmp_path / "prompt")
    assert all(torch.equal(a[name], b[name]) for name in a)
    timed = {"seconds", "tokens_per_second"}
    told = [
        [
            {k: v for k, v in event.items() if k not in timed}
            for event in events
            if event["event"] in ("step", "warning")
        ]
        for events in (late, prompt)
    ]
    assert sorted(map(str, told[0])) == sorted(map(str, told[1])) and sum(
        event["event"] == "warning" for event in told[0]
    ) == len(poison)
    assert [event["step"] for event in told[0] if event["event"] == "step"] == list(range(1, 16))
