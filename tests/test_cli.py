"""The command line: fast help, errors with hints, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tarazu
from tarazu.cli import main
from tarazu.errors import UserError
from tarazu.recipe.schema import load
from tarazu.recipe.shipped import available

SOURCE = str(Path(tarazu.__file__).parents[1])
COMMANDS = ["new", "check", "run", "resume", "merge", "report", "chat", "caption"]
COMMANDS += ["export", "judge", "verify", "doctor", "schema"]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tarazu", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": SOURCE},
        **options,
    )


def test_help_needs_no_torch():
    code = (
        "import sys, tarazu.cli as c\n"
        "try:\n    c.app(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Like `run`, but in this process, which has imported torch: (exit code, stderr)."""

    def called(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tarazu", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, capsys.readouterr().err

    return called


def test_bad_input_has_exit_code_2_and_no_traceback(tmp_path, run_here):
    done = run("run", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "o"))
    assert (
        done.returncode == 2
        and "no such recipe" in done.stderr
        and "what to do" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert run_here("run")[0] == 2 and run_here("resume", str(tmp_path))[0] == 2


def test_new_lists_and_copies_a_recipe(tmp_path):
    assert "demo" in run("new", cwd=tmp_path).stdout
    assert (
        run("new", "demo", cwd=tmp_path).returncode == 0
        and load(tmp_path / "demo.yaml").task == "chat"
    )
    assert (
        "$schema" not in (tmp_path / "demo.yaml").read_text()
    )  # its path is relative to the checkout
    assert run("new", "demo", cwd=tmp_path).returncode == 2, "an existing file is kept"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command):
    done = run(*command.split(), "--help")
    assert done.returncode == 0 and "Usage" in done.stdout and done.stderr == ""


def test_the_recorded_command_is_quoted_for_a_shell(monkeypatch):
    import shlex

    from tarazu.storage import provenance

    words = ["run", "r.yaml", "--set", "seeds=[0, 1]", "--out", "my study"]
    monkeypatch.setattr(sys, "argv", ["/anywhere/tarazu", *words])
    recorded = provenance.collect(load(available()["demo"]), __import__("torch").device("cpu"))[
        "command"
    ]
    assert shlex.split(recorded) == ["tarazu", *words]


def test_version():
    assert run("--version").stdout == f"tarazu {tarazu.__version__}\n"


def test_check_ends_with_a_summary_line(capsys):
    from tarazu.commands.check import print_estimate

    def method(name, works, reason):
        return {
            "method": name,
            "works": works,
            "reasons": reason,
            "notes": [],
            "seconds": None,
            "range": None,
            "tokens_per_second": None,
        }

    estimate = {
        "device": "cpu",
        "how": "measured",
        "total": {"seconds": [1, 1], "disk": [0, 10**18]},
    }
    works, fails = method("base", True, []), method("lora", False, ["no such module"])
    command = "tarazu run r.yaml --set 'seeds=[1, 2]' --out DIR"

    def last_lines(methods: list[dict], selected: bool = False) -> list[str]:
        print_estimate({**estimate, "methods": methods}, None, command, selected)
        return capsys.readouterr().out.strip().splitlines()

    lines = last_lines([works, fails])
    next_command = f"next: {command} --method base"
    assert lines[-1] == f"verdict: 1 of 2 methods will work here; {next_command}"
    assert "lora will not work: no such module" in lines and "of disk" in lines[-2]
    assert last_lines([fails])[-1] == "verdict: no method of this recipe will work here"
    selected = last_lines([works], selected=True)
    assert selected[-1] == f"verdict: these methods will work here; {next_command}"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("", "--out: no folder is named"),
        ("file", "file: a file, not a folder"),
        ("full", "full: this folder is not empty"),
        ("file/inside", "not a folder"),
        ("/proc/none/inside", "does not exist"),
    ],
)
def test_an_unwritable_path_is_named(tmp_path, out, message, run_here, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    monkeypatch.chdir(tmp_path)
    code, stderr = run_here("run", str(available()["demo"]), "--out", out)
    assert (
        code in (1, 2)
        and message in stderr
        and "what to do" in stderr
        and "Traceback" not in stderr
    )


def test_verify_refuses_a_folder_as_its_output_file(tmp_path):
    from chat import small

    from tarazu.commands.verify import verify

    with pytest.raises(UserError, match="this is a folder"):
        verify(
            str(small.recipe(tmp_path / "recipe.yaml", tmp_path / "no-model")),
            [],
            False,
            str(tmp_path),
        )


def test_a_gpu_becomes_the_current_device_and_a_missing_one_is_refused(monkeypatch):
    """Streams and events are created on the current device, so it must be the model's."""
    import torch

    from tarazu.devices import pick_device

    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [
        str(pick_device(SimpleNamespace(device=name))) for name in ("cuda", "cuda:0", "cuda:1")
    ] == ["cuda:0", "cuda:0", "cuda:1"]
    assert chosen == [torch.device("cuda:1")]
    with pytest.raises(UserError, match="cuda:2"):
        pick_device(SimpleNamespace(device="cuda:2"))
