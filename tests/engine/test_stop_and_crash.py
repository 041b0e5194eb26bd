"""What only real processes show: kill -9 while saving, a full disk, two at once."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from tarazu.engine import checkpoint
from tarazu.errors import UserError
from tarazu.storage.run_folder import StudyDir

SAVER = """
    import sys, torch
    from pathlib import Path
    from tarazu.engine import checkpoint
    torch.set_num_threads(1)
    print("ready", flush=True)
    for step in range(int(sys.argv[2]), 10**6):
        checkpoint.save(Path(sys.argv[1]), step, {"weights": {"w": torch.full((300_000,), float(step))}}, {"step": step})
"""


def start(code: str, *arguments: str, **options) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    assert process.stdout.readline().strip() == "ready", process.stderr.read()
    return process


def test_killed_while_saving_the_newest_whole_checkpoint_is_there(tmp_path):
    checkpoint.save(tmp_path, 1, {"weights": {"w": torch.ones(300_000)}}, {"step": 1})
    state = {"step": 1}
    for _ in range(4):
        process = start(SAVER, str(tmp_path), str(state["step"] + 1))  # goes on, as a run does
        time.sleep(0.2 + random.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        tensors, state, complaints = checkpoint.load(tmp_path)
        assert not complaints, complaints
        assert torch.equal(tensors["weights"]["w"], torch.full((300_000,), float(state["step"])))


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 1, {"weights": {"w": torch.ones(10)}}, {"step": 1})
    code = """
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
    process = start(
        code,
        str(tmp_path),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    text = process.communicate()[0]
    assert "cannot be written" in text and "tarazu resume" in text
    assert checkpoint.load(tmp_path)[1]["step"] == 1 and [p.name for p in tmp_path.iterdir()] == [
        "step-00000001"
    ]


def test_a_second_process_in_the_folder_is_refused(tmp_path):
    code = """
        import sys, time
        from pathlib import Path
        from tarazu.storage.run_folder import StudyDir
        with StudyDir(Path(sys.argv[1])).lock():
            print("ready", flush=True)
            time.sleep(60)
    """
    process = start(code, str(tmp_path))
    with pytest.raises(UserError, match="another process"), StudyDir(tmp_path).lock():
        pass
    process.kill()
    process.wait()
    with StudyDir(tmp_path).lock():
        pass
