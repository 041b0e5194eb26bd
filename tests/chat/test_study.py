"""A study in real processes: a run killed anywhere resumes to the same bytes; signals; refusals."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat import small
from safetensors.torch import load_file

from tarazu.commands import run as study_commands
from tarazu.errors import UserError
from tarazu.storage.atomic_io import read_json, read_jsonl
from tarazu.storage.run_folder import RunDir

TRAINED = [name for name in small.METHODS if name != "base"]
fork = multiprocessing.get_context(
    "forkserver"
)  # imports once; every child is still a process of its own
fork.set_forkserver_preload(
    ["tarazu.study.runner", "tarazu.chat.task", "peft", "datasets", "pyarrow"]
)


def _study(arguments: dict) -> None:
    """Run in the child process, with a checkpoint after every step."""
    import torch

    from tarazu.engine import trainer
    from tarazu.errors import TarazuError

    torch.set_num_threads(1)
    trainer.SAVE_SECONDS = 0.0
    try:
        study_commands.resume(
            arguments["out"]
        ) if "recipe" not in arguments else study_commands.run(
            **{k: v for k, v in arguments.items() if k != "recipe"}, recipe_path=arguments["recipe"]
        )
    except TarazuError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def start(**arguments):
    child = fork.Process(
        target=_study,
        args=({k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()},),
    )
    child.start()
    return child


def finish(child) -> int:
    child.join(120)
    return child.exitcode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted study of every method."""
    root = tmp_path_factory.mktemp("study")
    os.environ["TARAZU_CACHE"] = str(root / "cache")
    small.recipe(root / "recipe.yaml", small.save_model(root / "model"))
    assert finish(start(recipe=root / "recipe.yaml", out=root / "whole")) == 0
    return root


def steps(run: RunDir) -> list[dict]:
    return [event for event in run.read_jsonl("events.jsonl") if event["event"] == "step"]


def wait_for_step(child, run: RunDir, step: int) -> None:
    until = time.monotonic() + 60
    while len(steps(run)) < step and child.is_alive() and time.monotonic() < until:
        time.sleep(0.005)


@pytest.mark.parametrize("name", TRAINED)
def test_killed_and_resumed_equals_uninterrupted(whole, name, tmp_path):
    out = tmp_path / "cut"
    run = RunDir(out / name / "seed-0")
    last = len(steps(RunDir(whole / "whole" / name / "seed-0")))
    child = start(recipe=whole / "recipe.yaml", out=out, methods=[name])
    wait_for_step(child, run, random.randint(1, last - 2))
    child.kill()
    assert finish(child) == -signal.SIGKILL and not run.weights.exists()
    assert finish(start(out=out)) == 0
    expected = whole / "whole" / name / "seed-0"
    assert run.weights.read_bytes() == (expected / "weights.safetensors").read_bytes()
    assert [s["loss"] for s in steps(run)] == [s["loss"] for s in steps(RunDir(expected))]
    assert run.read_json("metrics.json") == read_json(expected / "metrics.json")
    assert run.read_json("ledger.json")["tokens"] == read_json(expected / "ledger.json")["tokens"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_at_the_edge_of_a_step(whole, number, code, tmp_path):
    out = tmp_path / "cut"
    run = RunDir(out / "lora" / "seed-0")
    child = start(recipe=whole / "recipe.yaml", out=out, methods=["lora"])
    wait_for_step(child, run, 3)
    os.kill(child.pid, number)
    assert finish(child) == code
    assert run.read_json("run.json")["status"] == "stopped"
    assert finish(start(out=out)) == 0
    assert (
        run.weights.read_bytes()
        == (whole / "whole" / "lora" / "seed-0" / "weights.safetensors").read_bytes()
    )


def test_every_method_sees_the_same_rows_and_proves_what_changed(whole):
    runs = [RunDir(whole / "whole" / name / "seed-0") for name in TRAINED]
    seen = {tuple((s["step"], s["tokens"]) for s in steps(run)) for run in runs}
    assert len(seen) == 1, "rows differ between methods"
    asked = {
        tuple(s["id"] for s in run.read_jsonl("samples.jsonl"))
        for run in [*runs, RunDir(whole / "whole" / "base" / "seed-0")]
    }
    assert len(asked) == 1 and len(asked.pop()) == 32 + 3
    for run in runs:
        proof = run.read_json("fingerprint.json")
        assert (
            proof["verdict"] == "ok"
            and proof["changed"]
            and proof["digest_before"] == proof["digest_after"]
        )
        assert sorted(load_file(run.weights)) == proof["changed"]
        ledger = run.read_json("ledger.json")
        assert (
            ledger["seconds"]["train"] > 0
            and ledger["train_memory"]["resident"] > 0
            and ledger["weights_bytes"] > 0
        )
        assert (ledger["tokens"]["virtual"] > 0) == ("tuning" in run.name)
    rows = read_json(whole / "whole" / "results.json")["rows"]
    assert [row["method"] for row in rows] == ["base", *TRAINED]
    assert all(
        row["loss"] > 0 and row["bits_per_byte"] > 0 and row["chrf"] is not None for row in rows
    )


def test_training_lowers_the_loss(whole):
    base = read_json(whole / "whole" / "base" / "seed-0" / "metrics.json")["loss"]
    for name in ("lora", "dora", "layers"):
        assert (
            read_json(whole / "whole" / name / "seed-0" / "metrics.json")["loss"] < base - 0.02
        ), name


def test_a_folder_is_never_overwritten_and_changed_data_is_refused(whole, tmp_path):
    assert finish(start(recipe=whole / "recipe.yaml", out=whole / "whole")) == 2
    rows = tmp_path / "rows.jsonl"
    lines = (small.SAMPLES / "chat_fa.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    rows.write_text("\n".join(lines), encoding="utf-8")
    note = {"fa": "به جای داده‌ای دیگر", "en": "stands in for other data"}
    data = {
        "source": str(rows),
        "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
        "note": note,
    }
    small.recipe(tmp_path / "recipe.yaml", whole / "model", data=data, methods={"base": {}})
    assert finish(start(recipe=tmp_path / "recipe.yaml", out=tmp_path / "out")) == 0
    assert read_json(tmp_path / "out" / "data.json")["note"] == note
    rows.write_text("\n".join(lines[1:]), encoding="utf-8")
    assert finish(start(out=tmp_path / "out")) == 2


def test_chat_and_export_answer_as_the_run_did(whole, tmp_path):
    """The merged folder and the PEFT adapter give the same tokens in transformers."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tarazu.chat.evaluation import generation
    from tarazu.chat.inference import export
    from tarazu.chat.inference.trained_model import load

    for name in ("lora", "layers", "loha", "prompt_tuning", "p_tuning", "prefix_tuning"):
        path = str(whole / "whole" / name)
        trainable, template, run, _ = load(path)
        sample = run.read_jsonl("samples.jsonl")[0]
        from tarazu.chat.data.chat_template import Turn

        prompt = template.encode_prompt([Turn(t["role"], t["text"]) for t in sample["turns"]])
        ours = generation.generate(trainable, [prompt], set(template.stop_ids), 5)[0].ids
        assert (
            template.tokenizer.decode(ours, skip_special_tokens=True).strip() == sample["output"]
        ), name
        ids = torch.tensor([prompt])
        for form in export.formats(run.kind):
            target = tmp_path / f"{name}-{form}"
            export.export(path, target, form)
            base = AutoModelForCausalLM.from_pretrained(
                target if form == "merged" else whole / "model", dtype=torch.float32
            )
            model = base if form == "merged" else peft.PeftModel.from_pretrained(base, target)
            theirs = model.eval().generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=5,
                do_sample=False,
                eos_token_id=template.stop_ids,
                pad_token_id=0,
            )
            assert theirs[0].tolist()[-len(ours) :] == ours, (name, form)
        assert AutoTokenizer.from_pretrained(target)(sample["output"])["input_ids"]


def test_the_terminal_chat_answers_from_standard_input(whole):
    command = [
        sys.executable,
        "-m",
        "tarazu",
        "chat",
        str(whole / "whole" / "lora"),
        str(whole / "whole" / "base"),
        "--compare",
        "--max-new-tokens",
        "4",
    ]
    done = subprocess.run(
        command,
        input="سلام\n/new\nخداحافظ\n/quit\n",
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(small.tarazu.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[lora]") == done.stdout.count("[base]") == 2


def test_events_are_whole_lines(whole):
    for name in TRAINED:
        path = whole / "whole" / name / "seed-0" / "events.jsonl"
        assert len(read_jsonl(path)) == path.read_text(encoding="utf-8").count("\n")


def test_a_study_whose_rows_cannot_be_had_leaves_no_folder(tmp_path):
    small.recipe(tmp_path / "recipe.yaml", small.save_model(tmp_path / "model"))
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        study_commands.run(
            str(tmp_path / "recipe.yaml"),
            str(tmp_path / "new"),
            overrides=["data.source=missing.jsonl"],
        )
    assert not (tmp_path / "new").exists()  # so the mended command may name it again
