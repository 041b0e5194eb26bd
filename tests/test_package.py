"""The wheel holds all data files, installs into a fresh environment, and runs there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import tarazu

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without a network by the installed hatchling."""
    folder = tmp_path_factory.mktemp("dist")
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel. A .pth file lends it the dependencies that are here."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *options, str(wheel)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(installed: Path, cwd: Path, program: str, *arguments: str) -> str:
    """The output of a program of the environment, far from the checkout."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    command = [installed / "bin" / program, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package(wheel):
    package = ROOT / "src"
    expected = {
        path.relative_to(package).as_posix()
        for path in (package / "tarazu").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"tarazu/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_the_commands_of_a_first_look_run_from_the_wheel(installed, tmp_path):
    printed = run(installed, tmp_path, "python", "-c", "import tarazu; print(tarazu.__file__)")
    assert str(installed) in printed
    assert run(installed, tmp_path, "tarazu", "--version") == f"tarazu {tarazu.__version__}\n"
    assert "demo " in run(installed, tmp_path, "tarazu", "new")
    run(installed, tmp_path, "tarazu", "new", "demo")
    assert "schema" not in (tmp_path / "demo.yaml").read_text().splitlines()[0]
    assert "CPU cores" in run(installed, tmp_path, "tarazu", "doctor")
