"""The estimate of `tarazu check`: predicted, measured, and compared with runs."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chat import small
from chat.tiny import model as tiny

from tarazu import cli
from tarazu.chat import cost as chat_cost
from tarazu.chat.task import Chat
from tarazu.engine.cost import TaskCost
from tarazu.engine.ledger import Ledger
from tarazu.engine.row_sampler import RowSampler, make_row_sampler
from tarazu.errors import UserError
from tarazu.estimate import comparison, cost_model, dry_run, estimator
from tarazu.recipe.schema import Budget, Search, load
from tarazu.storage.atomic_io import read_json
from tarazu.storage.run_folder import RunDir, StudyDir

CPU = torch.device("cpu")
METHODS = {
    "base": {},
    "prefix_tuning": {"num_virtual_tokens": 4},
    "lora": {"rank": 2},
    "misspelt": {"kind": "lora", "targets": ["q_prog"]},
    "too_many": {"kind": "layers", "num_first": 9},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    small.save_model(folder / "model")
    tiny("gemma2").save_pretrained(folder / "gemma2")
    small.tokenizer().save_pretrained(folder / "gemma2")
    return folder


@pytest.fixture(scope="module")
def recipe(home):
    data = {
        "source": "samples:chat_fa.jsonl",
        "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
        "max_length": 90,
    }
    budget = {
        "tokens": 4_000,
        "batch_rows": 8,
        "micro_batch_tokens": 400,
        "evaluate_every": 1_500,
        "validation_rows": 4,
        "gradient_checkpointing": True,
    }
    return small.recipe(
        home / "recipe.yaml",
        home / "model",
        methods=METHODS,
        data=data,
        budget=budget,
        forgetting=None,
    )


@pytest.fixture(scope="module")
def data(recipe, tmp_path_factory):
    return Chat().prepare(load(recipe), StudyDir(tmp_path_factory.mktemp("data")), CPU)


def by_name(found: dict) -> dict[str, dict]:
    return {method["method"]: method for method in found["methods"]}


def test_impossible_methods_are_found_without_loading_a_model(recipe, data, monkeypatch):
    monkeypatch.setattr("tarazu.chat.model.loading.load_model", None)
    found = by_name(estimator.estimate_study(load(recipe), data, CPU, measure=False))
    assert [name for name, method in found.items() if not method["works"]] == [
        "misspelt",
        "too_many",
    ]
    assert (
        "q_prog" in found["misspelt"]["reasons"][0]
        and "4 layers" in found["too_many"]["reasons"][0]
    )
    assert (
        "gradient checkpointing" in found["prefix_tuning"]["notes"][0]
        and not found["lora"]["notes"]
    )


def test_gemma_2_with_sdpa_and_tied_heads_are_refused(home, recipe, data):
    changed = load(
        recipe, [f"model={home / 'gemma2'}", "attention=sdpa", "methods={lora: {rank: 2}}"]
    )
    assert (
        "scaled_dot_product_attention"
        in by_name(estimator.estimate_study(changed, data, CPU, measure=False))["lora"]["reasons"][
            0
        ]
    )
    changed = load(
        recipe,
        [
            f"model={home / 'gemma2'}",
            "methods={layers: {num_first: 1, num_last: 1, lm_head: true}}",
        ],
    )
    assert (
        "tied"
        in by_name(estimator.estimate_study(changed, data, CPU, measure=False))["layers"][
            "reasons"
        ][0]
    )


def test_a_model_too_large_for_the_memory_is_refused_and_never_built(recipe, data, monkeypatch):
    monkeypatch.setattr(cost_model, "available_memory", lambda _: 1000)
    monkeypatch.setattr("tarazu.chat.model.loading.load_model", None)
    found = by_name(
        estimator.estimate_study(load(recipe, ["methods={lora: {rank: 2}}"]), data, CPU)
    )
    assert not found["lora"]["works"] and "GiB of memory" in found["lora"]["reasons"][0]


def test_predictions_for_devices_of_the_table(recipe, data):
    slow, fast = (
        by_name(estimator.estimate_study(load(recipe), data, CPU, False, on))["lora"]["range"][
            "seconds"
        ]
        for on in ("T4", "h100")
    )
    assert 0 < fast[0] < fast[1] and fast[0] < slow[0]
    with pytest.raises(UserError, match="H200"):
        estimator.estimate_study(load(recipe), data, CPU, False, "abacus")


def test_a_method_that_fails_gives_the_reason(recipe, data, monkeypatch):
    def broken(self, trainable, batch):
        raise RuntimeError("no such kernel\nstack")

    monkeypatch.setattr(Chat, "loss", broken)
    found = by_name(
        estimator.estimate_study(load(recipe, ["methods={lora: {rank: 2}}"]), data, CPU)
    )
    assert not found["lora"]["works"] and found["lora"]["reasons"] == [
        "fails with this model and attention: RuntimeError: no such kernel"
    ]
    assert estimator.describe_failure(RuntimeError("CUDA out of memory. Tried to")).startswith(
        "does not fit into memory"
    )


def test_validations_are_counted_as_in_a_run():
    assert estimator.count_validations(Budget(tokens=12_000, evaluate_every=4_000)) == 4
    assert estimator.count_validations(Budget(tokens=12_000)) == 11
    assert estimator.count_validations(Budget(epochs=3)) == 4


def test_the_heaviest_step_holds_the_longest_row(data):
    lengths = data.store.lengths("train")
    rows = Chat.cost.with_longest_row(data, [0, 1, 2])
    assert len(rows) == 3 and max(lengths[rows]) == lengths.max()


def test_the_heaviest_step_is_the_one_with_the_most_tokens_of_the_run(data):
    order, lengths = RowSampler(data.size("train"), 4, 0), data.store.lengths("train")
    most = max(
        int(lengths[order.rows_of_step(step)].sum()) for step in range(order.steps_per_epoch)
    )
    assert int(lengths[dry_run.heaviest_step(data, order, Chat.cost)].sum()) == most
    assert list(dry_run.heaviest_step(data, order, TaskCost())) == list(
        order.rows_of_step(0)
    )  # rows do not differ in size


def test_a_gpu_is_timed_with_full_passes():
    lengths = np.array([3, 4, 5, 6])
    assert [chat_cost.rows_of_a_full_pass(lengths, limit) for limit in (1, 7, 11, 12, 99)] == [
        1,
        2,
        2,
        3,
        4,
    ]


def test_steps_that_compiled_are_left_out_on_a_gpu(tmp_path):
    seconds = [9.0, 0.2, 0.2, 5.0, 0.2, 0.2, 0.2, 0.3, 0.2]
    run = RunDir(tmp_path / "lora" / "seed-0")
    run.path.mkdir(parents=True)
    lines = [{"event": "step", "seconds": one, "tokens_per_second": 100 / one} for one in seconds]
    (run.path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    each = dry_run.seconds_per_step(run, SimpleNamespace(device=torch.device("cuda")))
    assert each == pytest.approx(0.22)  # a slightly slower step counts


def test_warmup_is_the_extra_time_of_the_first_rounds():
    assert dry_run.extra_over_last_round([3.0]) == 0.0
    assert dry_run.extra_over_last_round([3.0, 2.0, 0.5]) == 4.0
    assert dry_run.extra_over_last_round([0.4, 2.0, 0.5]) == 1.5


def test_the_steps_that_bring_a_new_shape_are_found(recipe, data):
    order, chat = RowSampler(42, 4, 0), Chat()
    widths = [{7}, {7}, {3, 7}, {3}, {9}, {7}, {1}, {9}, {9}, {9}, {5}]
    steps = {tuple(order.rows_of_step(step)): step for step in range(11)}

    def shapes(rows):
        return widths[steps[tuple(rows)]]

    assert dry_run.first_step_of_each_shape(order, shapes, 10) == (0, 2, 4, 6)
    assert dry_run.first_step_of_each_shape(order, shapes, 4) == (0, 2)
    assert dry_run.first_step_of_each_shape(order, shapes, 11) == (
        0,
        2,
        4,
        6,
    )  # the last step is short
    loaded = load(recipe)
    trainable = chat.build(loaded, "lora", data, 0, CPU)
    packed = dataclasses.replace(data, packed=True)
    tokens = int(data.store.lengths("train")[:3].sum())
    assert chat.cost.pass_shapes(trainable, packed, loaded, [0, 1, 2]) == {tokens} and tokens <= 400
    assert (
        chat.cost.pass_shapes(trainable, dataclasses.replace(data, packed=False), loaded, [0, 1, 2])
        == set()
    )


def test_all_steps_of_a_short_run_are_inspected():
    order = RowSampler(100, 4, 0)
    assert dry_run.steps_to_inspect(order, Budget(tokens=95), lambda rows: 10) == (10, True)
    assert dry_run.steps_to_inspect(order, Budget(tokens=95_000), lambda rows: 10) == (25, False)
    assert dry_run.steps_to_inspect(order, Budget(epochs=0.5), lambda rows: 10) == (13, True)
    assert dry_run.steps_to_inspect(order, Budget(epochs=2), lambda rows: 10) == (25, False)


def test_each_seed_takes_its_own_steps_with_new_shapes(recipe, data, tmp_path, monkeypatch):
    class Seen(Chat):
        def collate(self, trainable, data, split, rows, limit):
            seen.append(rows)
            return super().collate(trainable, data, split, rows, limit)

    def widths(rows):  # few, so that they recur as on a GPU
        return {
            batch.ids.shape[1] // 40
            for batch in Chat().collate(
                trainable, packed, "train", rows, loaded.budget.micro_batch_tokens
            )
        }

    monkeypatch.setitem(dry_run.ROUNDS, "cpu", 2)
    monkeypatch.setattr(
        Chat.cost, "pass_shapes", lambda trainable, data, recipe, rows: widths(rows)
    )
    seen, loaded, packed = (
        [],
        load(recipe, ["seeds=[3, 5]"]),
        dataclasses.replace(data, packed=True),
    )
    task = Seen()
    trainable = task.build(loaded, "lora", packed, 3, CPU)
    timing = dry_run.dry_run(task, loaded, "lora", packed, trainable, tmp_path, Ledger(CPU))
    orders = {
        seed: make_row_sampler(task, packed, loaded.methods["lora"], loaded.budget, seed)
        for seed in (3, 5)
    }
    seen.remove(orders[3].rows_of_step(0))  # not counted: one-time costs of the process
    assert (
        list(timing.warmups) == [3, 5]
        and timing.warmups[3].new_shape_steps != timing.warmups[5].new_shape_steps
    )
    for seed, warmup in timing.warmups.items():
        steps = [orders[seed].rows_of_step(step) for step in warmup.new_shape_steps]
        taken = [rows for rows in seen if rows in steps]
        assert len(steps) > 1 and taken == [*steps, *steps] + [
            rows for rows in taken[2 * len(steps) :] if rows in steps
        ]
        assert warmup.peak_memory > 0 and warmup.extra_seconds >= 0


def test_each_seed_has_its_own_estimate(tmp_path):
    timing = dry_run.TrainingTiming(
        {0: dry_run.Warmup(2.0, 100, (0, 1, 9, 40)), 1: dry_run.Warmup(5.0, 130, (0, 3))},
        num_steps=100,
        step_seconds=0.1,
        tokens_per_step=50.0,
        checkpoint_seconds=0,
        disk_bytes=7,
    )
    assert [timing.warmup_seconds(steps) for steps in (1, 10, 1000)] == [
        0.5,
        1.5,
        2.0,
    ]  # short trials do not have all new shapes
    summary = estimator.training_summary(timing)
    assert summary["memory"] == 100 and summary["by_seed"]["1"] == {
        "train": 15.0,
        "tokens_per_second": 5000 / 15,
        "memory": 130,
    }
    seconds = {"load": 1.0, "train": 12.0, "search": 20.0, "total": 33.0}
    entry = {
        "method": "lora",
        "kind": "lora",
        "works": True,
        "how": "measured",
        "seconds": seconds,
        **summary,
        "range": estimator.measured_ranges(timing, 33.0, 4.0, 7),
    }
    assert entry["range"] == {"seconds": [33.0, 37.0], "disk": [7, 7], "memory": [100, 130]}
    total = estimator.study_total(SimpleNamespace(seeds=[0, 1, 2]), [entry])
    assert total["seconds"] == [
        33 + (13 + 3) + 13,
        37 + (13 + 3) + 13,
    ]  # the search runs once
    for seed in (0, 1):
        run = RunDir(tmp_path / "lora" / f"seed-{seed}")
        run.path.mkdir(parents=True)
        ledger = {
            "seconds": {"load": 1.0, "train": 15.0, "search": 20.0},
            "tokens_per_second": 400.0,
            "train_memory": {"allocated": 130, "resident": None},
        }
        (run.path / "ledger.json").write_text(json.dumps(ledger))
        rows = {
            row["metric"]: row
            for row in comparison.compare_with_runs({"methods": [entry]}, iter([run]))
        }
        assert rows["train (s)"]["ratio"] == (1.25 if seed == 0 else 1.0) and rows[
            "memory (bytes)"
        ]["ratio"] == (1.3 if seed == 0 else 1.0)
        assert rows["total (s)"]["estimated"] == (33.0 if seed == 0 else 36.0)


def test_the_dry_run_takes_the_first_steps_of_a_run(recipe, data, tmp_path):
    class Seen(Chat):
        def collate(self, trainable, data, split, rows, limit):
            seen.append(rows)
            return super().collate(trainable, data, split, rows, limit)

    seen, loaded, task = [], load(recipe), Seen()
    order = make_row_sampler(task, data, loaded.methods["lora"], loaded.budget, 0)
    rows = [row for step in range(3) for row in order.rows_of_step(step)]
    dry_run.train_on_rows(
        task,
        loaded,
        "lora",
        data,
        task.build(loaded, "lora", data, 0, CPU),
        rows,
        tmp_path,
        Ledger(CPU),
    )
    assert [some for some in seen if len(some) == len(order.rows_of_step(0))][:3] == [
        order.rows_of_step(step) for step in range(3)
    ]


def test_a_search_costs_its_steps_its_trials_and_one_build(recipe):
    changed = load(recipe).model_copy(
        update={"search": Search(tokens=1000, learning_rate=[1e-4, 1e-3])}
    )
    found, beyond = estimator.search_seconds(
        changed,
        "lora",
        build_seconds=2.0,
        step_seconds=0.5,
        tokens_per_step=120,
        trial_overhead=1.0,
    )
    assert found == {"search": pytest.approx(2 + 2 * (5 * 0.5 + 1))} and beyond == pytest.approx(
        2 * (5 * 0.5 + 1)
    )
    fixed = changed.model_copy(
        update={
            "search": Search(
                tokens=1000, learning_rate=[1e-4, 1e-3], rank=[2, 4], extend_range=False
            )
        }
    )
    found, beyond = estimator.search_seconds(
        fixed, "lora", build_seconds=2.0, step_seconds=0.5, tokens_per_step=120, trial_overhead=1.0
    )
    trials = 4 * (math.ceil(125 / 120) * 0.5 + 1) + 2 * (math.ceil(250 / 120) * 0.5 + 1)
    assert found == {"search": pytest.approx(6 * 2 + trials)} and beyond == 0
    assert estimator.search_seconds(load(recipe), "lora", 2.0, 0.5, 120, 1.0) == ({}, 0.0)
    met, _ = estimator.search_seconds(
        changed,
        "lora",
        build_seconds=2.0,
        step_seconds=0.5,
        tokens_per_step=120,
        trial_overhead=1.0,
        warmup_seconds=lambda steps: steps / 10,
    )
    assert met == {
        "search": pytest.approx(2 + 5 / 10 + 2 * (5 * 0.5 + 1))
    }  # the warm-up of its longest trial, once


def test_measured_estimate_compared_with_a_run(recipe, home, capsys, monkeypatch, tmp_path):
    out, overrides = home / "run", ["--set", "methods={base: {}, lora: {rank: 2}}"]
    for command in (
        ["run", str(recipe), "--out", str(out), *overrides],
        [
            "check",
            str(recipe),
            *overrides,
            "--rows",
            "0",
            "--compare",
            str(out),
            "--out",
            str(tmp_path / "check.json"),
        ],
    ):
        monkeypatch.setattr("sys.argv", ["tarazu", *command])
        cli.main()
    printed = capsys.readouterr().out
    assert "estimate: measured" in printed and "actual / estimated" in printed
    found = read_json(tmp_path / "check.json")
    lora = by_name(found["estimate"])["lora"]
    assert lora["how"] == "measured" and lora["memory"] > 0 and lora["flops_per_token"] > 0
    ledger = read_json(out / "lora" / "seed-0" / "ledger.json")
    assert ledger["utilisation"] > 0 and ledger["flops_per_token"] == pytest.approx(
        lora["flops_per_token"], rel=0.05
    )
    rows = {(row["method"], row["metric"]): row for row in found["compared"]}
    assert rows["lora", "train (s)"]["actual"] == ledger["seconds"]["train"]
    assert all(
        0.1 < rows["lora", figure]["ratio"] < 10
        for figure in ("train (s)", "tokens/s", "memory (bytes)", "validate (s)", "evaluate (s)")
    )
    for name, method in by_name(
        found["estimate"]
    ).items():  # answers are larger than these small weights
        assert method["disk"] == pytest.approx(
            read_json(out / name / "seed-0" / "ledger.json")["disk_bytes"], rel=0.1
        )
    assert found["estimate"]["total"]["methods"] == 2


def test_json_output(recipe, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tarazu", "check", str(recipe), "--json", "--no-measure"])
    cli.main()
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"recipe", "data", "estimate"} and found["estimate"]["how"] == "predicted"
    assert dataclasses.is_dataclass(cost_model.DeviceSpec)
