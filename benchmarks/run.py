"""Everything that this machine can measure, ours and the peer's side by side: what `make bench` calls.

    python -m benchmarks.run                              # on a CPU: minutes; on a GPU: all tables, an hour or so
    python -m benchmarks.run --only lora --repeats 3      # the comparisons whose names hold "lora"

Each training is a process of its own; a comparison's processes run one after the other, in reverse order every second time,
so that a warm cache or a warm GPU is nobody's advantage. One file for each comparison, in `benchmarks/results/`. What fails is
told at the end, after the rest.
"""

from __future__ import annotations

from benchmarks import common

# isort: split

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import table

SLOWEST = 900  # seconds that one process may take


@dataclass(frozen=True)
class Comparison:
    """Commands (module and arguments) that measure the same work, ours first."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    alone: bool = False  # the command takes turns with its peer by itself


def comparisons(gpu: bool) -> list[Comparison]:
    """What can be measured on this sort of machine."""
    folder = os.environ.get("TARAZU_FLICKR8K")
    pictures = (
        ("--source", folder)
        if folder
        else ("--drawn", "60", "--steps", "12", "--warm", "3", "--set", "budget.batch_rows=32")
    )
    captions = Comparison("captions", (("benchmarks.captions", *pictures),), alone=True)
    if not gpu:
        return [
            captions,
            Comparison("cpu-demo", (("benchmarks.cpu",),), alone=True),
            Comparison("generation-gemma-3-270m", (("benchmarks.generation",),), alone=True),
        ]
    made = [
        _training("gemma-2-2b", "lora", "trl_sft"),
        _training("gemma-2-2b", "lora", "trl_sft", "--checkpointing"),
        _training("llama-3.2-3b", "lora", "trl_sft"),
        *(
            _training("gemma-2-2b", method, "plain_loop", "--method", method)
            for method in (
                "prompt_tuning",
                "prefix_tuning",
                "p_tuning",
                "layers",
                "rslora",
                "dora",
                "loha",
            )
        ),
    ]
    random = (
        "benchmarks.generation",
        "--shape",
        "gemma-2-2b",
        "--prompts",
        "32",
        "--most",
        "64",
        "--batch-rows",
        "32",
    )
    exact = (
        "benchmarks.generation",
        "--shape",
        "tiny-gemma2",
        "--prompts",
        "16",
        "--most",
        "32",
        "--float32",
        "--repeats",
        "1",
    )
    return [
        captions,
        *made,
        Comparison("generation-gemma-2-2b", (random,), alone=True),
        Comparison("generation-tiny-gemma2", (exact,), alone=True),
    ]


def _training(shape: str, method: str, peer: str = "", *options: str) -> Comparison:
    both = tuple(o for o in options if o == "--checkpointing")
    commands = [("benchmarks.train", "--shape", shape, "--method", method, *both)]
    if peer:
        one_width = (
            ("--pad-to", "16384") if peer == "trl_sft" else ()
        )  # else it compiles anew for each width
        commands.append((f"benchmarks.peers.{peer}", "--shape", shape, *one_width, *options))
    return Comparison(
        "-".join(["train", shape, method, *(o.strip("-") for o in both)]), tuple(commands)
    )


def measure(one: Comparison, repeats: int, failed: list[str]) -> list[dict]:
    """The records of a comparison; those of one contender's runs are pooled."""
    runs: list[list[dict]] = [[] for _ in one.commands]
    for turn in range(1 if one.alone else repeats):
        for i in list(range(len(one.commands)))[:: -1 if turn % 2 else 1]:
            found, error = _call(one.commands[i])
            runs[i].append(found)
            failed += [f"{one.name}: {' '.join(one.commands[i])}: {error}"] * bool(error)
    whole = [[found for found in some if found] for some in runs]
    return [
        record
        for some in whole
        if some
        for record in (some[0] if one.alone else [pooled([found[0] for found in some])])
    ]


def pooled(records: list[dict]) -> dict:
    """One contender's runs as one record: that of the middle run, with the median of the runs and their widest quartiles."""
    timed = sorted(
        (r for r in records if r.get("tokens_per_second")),
        key=lambda r: r["tokens_per_second"]["median"],
    )
    if not timed:
        return records[0]
    rates = [r["tokens_per_second"] for r in timed]
    middle = common.spread([rate["median"] for rate in rates])["median"]
    spread = {
        "median": middle,
        "low": min(rate["low"] for rate in rates),
        "high": max(rate["high"] for rate in rates),
    }
    peaks = [r["peak_gib"] for r in timed if r.get("peak_gib")]
    firsts = [
        r.get("first_step_seconds") for r in records
    ]  # in the order they ran: the first may have had a cold cache
    return {
        **timed[len(timed) // 2],
        "tokens_per_second": spread,
        "peak_gib": max(peaks, default=None),
        "first_steps": firsts,
        "runs": [rate["median"] for rate in rates],
    }


def _call(command: tuple[str, ...]) -> tuple[list[dict], str]:
    """The records that a command writes, and what went wrong if something did."""
    print("+", " ".join(command), file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--out", str(out)],
            stdout=sys.stderr,
            cwd=Path(__file__).parents[1],
        )
        try:
            error = f"exit code {code}" if (code := process.wait(SLOWEST)) else ""
        except subprocess.TimeoutExpired:
            error = f"stopped after {SLOWEST} s"
            process.terminate()
            time.sleep(5)  # it writes what it has
            process.kill()
            process.wait()
        except BaseException:
            process.terminate()
            raise
        found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    return (found if isinstance(found, list) else [found]), error


def missing(one: Comparison) -> str | None:
    """The package that a comparison needs and that is not here."""
    needs = {"benchmarks.peers.trl_sft": "trl", "benchmarks.train": "tarazu"}
    return next(
        (
            needs[c[0]]
            for c in one.commands
            if c[0] in needs and not importlib.util.find_spec(needs[c[0]])
        ),
        None,
    )


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--only", default="", help="comparisons whose names hold this")
    asked.add_argument("--repeats", type=int, default=2, help="processes of each contender")
    asked.add_argument("--results", type=Path, default=common.RESULTS)
    asked.add_argument("--into", type=Path, help="then write the table into this file")
    args = asked.parse_args()
    import torch

    failed: list[str] = []
    device = re.sub(r"[^a-z0-9]+", "-", common.device_name().lower()).strip("-")
    for one in comparisons(torch.cuda.is_available()):
        if args.only not in one.name:
            continue
        if package := missing(one):
            print(
                f"{one.name}: left out, {package} is not installed (benchmarks/README.md)",
                file=sys.stderr,
            )
        elif records := measure(one, args.repeats, failed):
            common.write(args.results / f"{one.name}-{device}.json", records)
    if args.into:
        table.insert(args.into, table.markdown(common.read(args.results)))
    if failed:
        raise SystemExit("not measured:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
