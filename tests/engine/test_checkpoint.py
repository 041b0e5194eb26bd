"""Checkpoints survive a flipped bit, kill -9 while saving, and a full disk."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from tarazu.engine import checkpoint
from tarazu.errors import TarazuError, UserError
from tarazu.storage.run_folder import StudyDir

SAVE_FOR_EVER = """
    import sys, torch
    from pathlib import Path
    from tarazu.engine import checkpoint
    torch.set_num_threads(1)
    print("ready", flush=True)
    for step in range(int(sys.argv[2]), 10**6):
        tensors = {"weights": {"w": torch.full((300_000,), float(step))}}
        checkpoint.save(Path(sys.argv[1]), step, tensors, {"step": step})
"""
SAVE_TO_FULL_DISK = """
    import sys, torch, signal
    from pathlib import Path
    from tarazu.engine import checkpoint
    from tarazu.errors import TarazuError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    print("ready", flush=True)
    try:
        checkpoint.save(Path(sys.argv[1]), 2, {"weights": {"w": torch.ones(100_000)}}, {"step": 2})
    except TarazuError as error:
        print(error)
"""
HOLD_LOCK = """
    import sys, time
    from pathlib import Path
    from tarazu.storage.run_folder import StudyDir
    with StudyDir(Path(sys.argv[1])).lock():
        print("ready", flush=True)
        time.sleep(60)
"""


def start_process(code: str, *arguments: str, **options) -> subprocess.Popen:
    """A Python process that has printed `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline().strip() == "ready", process.stderr.read()
    return process


def save(folder: Path, step: int, size: int) -> None:
    tensors = {"weights": {"w": torch.full((size,), float(step))}}
    checkpoint.save(folder, step, tensors, {"step": step})


def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    folder = tmp_path / "checkpoint"
    for step in (1, 2, 3):
        save(folder, step, 1000)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000003"]
    newest = folder / "step-00000003" / "weights.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1  # still a valid safetensors file
    newest.write_bytes(data)
    tensors, state, damaged = checkpoint.load(folder)
    assert state["step"] == 2 and tensors["weights"]["w"][0] == 2 and "sha256" in damaged[0]
    (folder / "step-00000002" / "manifest.json").unlink()
    with pytest.raises(TarazuError, match="no checkpoint is intact"):
        checkpoint.load(folder)


def test_folder_without_checkpoints_has_none(tmp_path):
    assert checkpoint.load(tmp_path / "nothing") is None


def test_kill_while_saving_leaves_an_intact_checkpoint(tmp_path):
    save(tmp_path, 1, 300_000)
    state = {"step": 1}
    for _ in range(4):
        process = start_process(SAVE_FOR_EVER, str(tmp_path), str(state["step"] + 1))
        time.sleep(0.2 + random.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        tensors, state, damaged = checkpoint.load(tmp_path)
        assert not damaged, damaged
        assert torch.equal(tensors["weights"]["w"], torch.full((300_000,), float(state["step"])))


def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    save(tmp_path, 1, 10)
    process = start_process(
        SAVE_TO_FULL_DISK,
        str(tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    text = process.communicate()[0]
    assert "cannot be written" in text and "tarazu resume" in text
    assert checkpoint.load(tmp_path)[1]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_second_process_in_a_study_is_refused(tmp_path):
    process = start_process(HOLD_LOCK, str(tmp_path))
    with pytest.raises(UserError, match="another process"), StudyDir(tmp_path).lock():
        pass
    process.kill()
    process.wait()
    with StudyDir(tmp_path).lock():
        pass
