"""The command line as a user meets it: help at once, named errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tarazu
from tarazu.cli import main
from tarazu.errors import UserError
from tarazu.recipe.schema import json_schema, load
from tarazu.recipe.shipped import available

SOURCE = str(Path(tarazu.__file__).parents[1])


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
    code = "import sys, tarazu.cli as c\ntry:\n    c.app(['--help'])\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert done.returncode == 0, done.stderr
    for command in (
        "run",
        "resume",
        "check",
        "report",
        "chat",
        "caption",
        "export",
        "doctor",
        "new",
        "verify",
    ):
        assert command in done.stdout


@pytest.fixture
def run_here(monkeypatch, capsys):
    """As `run`, in this process, where torch is there already: (exit code, stderr)."""

    def called(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tarazu", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, capsys.readouterr().err

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
    assert "$schema" not in (tmp_path / "demo.yaml").read_text()  # its path is the checkout's
    assert run("new", "demo", cwd=tmp_path).returncode == 2, "an existing file is kept"


@pytest.mark.parametrize("path", available().values(), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path):
    assert load(path).methods


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "task: chat\nmodel: x\ndata: {source: a}\nbudget: {tokens: 5}\nmethods: {lora: {rnak: 4}}\n",
            r"r.yaml:5:\d+: .*unknown key 'rnak'",
        ),
        (
            "task: chat\nmodel: x\ndata: {source: a}\nbudget:\n  tokens: -5\nmethods: {lora: {}}\n",
            "r.yaml:5:3",
        ),
        (
            "task: chat\nmodel: x\ndata: {source: a}\nbudget: {}\nmethods: {lora: {}}\n",
            "either `tokens` or `epochs`",
        ),
        ("task: caht\n", "did you mean 'chat'"),
        ("task: chat\ntask: chat\n", "duplicate key"),
        ("a: &x [1]\nb: *x\n", "aliases are not used"),
        ("task: [\n", "not valid YAML"),
        ("- 1\n", "a mapping"),
        (
            "task: chat\nmodel: x\ndata: {source: a}\nbudget: {tokens: 5}\nmethods: {'../evil': {kind: lora}}\n",
            "letters, digits",
        ),
        (
            "task: chat\nmodel: x\ndata: {source: a}\nbudget: {tokens: 5}\nmethods: {lroa: {}}\n",
            "lroa",
        ),
        (
            "task: chat\nmodel: x\ndata: {source: a}\nbudget: {tokens: 5}\nmethods: {lora: {}}\nsearch: {tokens: 5}\n",
            "nothing to search",
        ),
    ],
)
def test_a_recipe_error_says_where(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "r.yaml")


def test_set_overrides_and_scientific_numbers(tmp_path):
    demo = available()["demo"]
    recipe = load(demo, ["budget.tokens=123", "methods.lora.learning_rate=1e-4", "seeds=[3, 4]"])
    assert (
        recipe.budget.tokens == 123
        and recipe.methods["lora"].learning_rate == 1e-4
        and recipe.seeds == [3, 4]
    )
    with pytest.raises(UserError, match="key.path=value"):
        load(demo, ["nonsense"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "budget.tokns=5",
            r"--set budget.tokns: budget.tokns: unknown key 'tokns'; did you mean 'tokens'",
        ),
        ("budjet.tokens=5", r"--set budjet.tokens: budjet: .*did you mean 'budget'"),
        ("methods.lora.rnk=5", r": methods.lora.rnk: .*did you mean 'rank'"),
        (
            "methods.lorra.rank=5",
            r"--set methods.lorra.rank: methods.lorra: .*'lorra': one of base, .*; did you mean 'lora'",
        ),
        ("budget.tokens=many", "--set budget.tokens: "),
        (
            "budget.tokens=۴٬۰۰۰",
            "budget.tokens: a number in a recipe has the digits 0 to 9: write 4000",
        ),
        ("methods.lora.learning_rate=۰٫۰۱", "write 0.01"),
        ("search.extend_range=false", "--set search.extend_range: search.tokens: Field required"),
        ("budget.epochs=1", r"demo.yaml:\d+:1: budget: give either"),
    ],
)
def test_a_wrong_override_names_itself_and_what_was_meant(assignment, message):
    with pytest.raises(UserError, match=message):
        load(available()["demo"], [assignment])


def test_the_published_schema_is_the_codes():
    published = Path(SOURCE).parent / "docs" / "recipe.schema.json"
    assert json.loads(published.read_text()) == json.loads(json_schema()), (
        "run: tarazu schema > docs/recipe.schema.json"
    )


@pytest.mark.parametrize(
    "command",
    [
        "",
        "new",
        "check",
        "run",
        "resume",
        "merge",
        "report",
        "chat",
        "caption",
        "export",
        "judge",
        "verify",
        "doctor",
        "schema",
    ],
)
def test_every_command_explains_itself(command):
    done = run(*command.split(), "--help")
    assert done.returncode == 0 and "Usage" in done.stdout and done.stderr == ""


def test_the_command_that_is_kept_can_be_pasted_into_a_shell(monkeypatch):
    import shlex

    from tarazu.storage import provenance

    words = ["run", "r.yaml", "--set", "seeds=[0, 1]", "--out", "my study"]
    monkeypatch.setattr(sys, "argv", ["/anywhere/tarazu", *words])
    kept = provenance.collect(load(available()["demo"]), __import__("torch").device("cpu"))[
        "command"
    ]
    assert shlex.split(kept) == ["tarazu", *words]


def test_its_version():
    assert run("--version").stdout == f"tarazu {tarazu.__version__}\n"


def test_check_ends_with_its_verdict(capsys):
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

    found = {
        "device": "cpu",
        "how": "measured",
        "total": {"seconds": [1, 1], "disk": [0, 10**18]},
        "methods": [method("base", True, []), method("lora", False, ["no such module"])],
    }
    print_estimate(found, None, "tarazu run r.yaml --set 'seeds=[1, 2]' --out DIR")
    lines = capsys.readouterr().out.strip().splitlines()
    assert (
        lines[-1]
        == "verdict: 1 of 2 methods will work here; next: tarazu run r.yaml --set 'seeds=[1, 2]' --out DIR --method base"
    )
    assert "lora will not work: no such module" in lines and "of disk" in lines[-2]
    print_estimate({**found, "methods": found["methods"][1:]}, None, "tarazu run r.yaml --out DIR")
    assert (
        capsys.readouterr().out.strip().splitlines()[-1]
        == "verdict: no method of this recipe will work here"
    )
    print_estimate(
        {**found, "methods": found["methods"][:1]}, None, "tarazu run r.yaml --out DIR", True
    )  # of a recipe that has more
    assert (
        capsys.readouterr().out.strip().splitlines()[-1]
        == "verdict: these methods will work here; next: tarazu run r.yaml --out DIR --method base"
    )


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
def test_a_place_that_cannot_be_written_is_named(tmp_path, out, message, run_here, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    monkeypatch.chdir(tmp_path)
    code, told = run_here("run", str(available()["demo"]), "--out", out)
    assert code in (1, 2) and message in told and "what to do" in told and "Traceback" not in told


def test_verify_refuses_a_folder_as_its_file_before_it_begins(tmp_path):
    from chat import small

    from tarazu.commands.verify import verify

    with pytest.raises(UserError, match="this is a folder"):
        verify(
            str(small.recipe(tmp_path / "recipe.yaml", tmp_path / "no-model")),
            [],
            False,
            str(tmp_path),
        )


def test_another_gpu_becomes_the_process_s_own_and_one_that_is_not_there_is_refused(monkeypatch):
    """Streams, events and kernels go to the current device: else a step's figures would be read before they are there."""
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
