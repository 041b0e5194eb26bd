"""Measure tarazu and its peers side by side: what `make bench` calls.

    python -m benchmarks.run                           # CPU: minutes; GPU: about an hour
    python -m benchmarks.run --only lora --repeats 3   # comparisons with "lora" in their names
    python -m benchmarks.run --into docs/performance.md    # then write the tables there

Each training has a process of its own. The processes of a comparison run one after the other, in
reverse order every second time, so that neither side profits from a warm cache or GPU. Each
comparison has one file in `benchmarks/results/`. Failures are listed at the end.
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

MAX_SECONDS = 900  # seconds that one process may take


@dataclass(frozen=True)
class Comparison:
    """Commands (module and arguments) that measure the same work, ours first."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    alone: bool = False  # the command takes turns with its peer by itself


def comparisons(gpu: bool) -> list[Comparison]:
    """Return the comparisons that a machine with or without a GPU can run."""
    folder = os.environ.get("TARAZU_FLICKR8K")
    caption_options = (
        ("--source", folder)
        if folder
        else ("--scenes", "60", "--steps", "12", "--warm", "3", "--set", "budget.batch_rows=32")
    )
    captions = Comparison("captions", (("benchmarks.captions", *caption_options),), alone=True)
    if not gpu:
        return [
            captions,
            Comparison("cpu-demo", (("benchmarks.cpu",),), alone=True),
            Comparison("generation-gemma-3-270m", (("benchmarks.generation",),), alone=True),
        ]
    training = [
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
    random_weights = (
        "benchmarks.generation",
        "--shape",
        "gemma-2-2b",
        "--prompts",
        "32",
        "--max-new-tokens",
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
        "--max-new-tokens",
        "32",
        "--float32",
        "--repeats",
        "1",
    )
    return [
        captions,
        *training,
        Comparison("generation-gemma-2-2b", (random_weights,), alone=True),
        Comparison("generation-tiny-gemma2", (exact,), alone=True),
    ]


def _training(shape: str, method: str, peer: str = "", *options: str) -> Comparison:
    both = tuple(o for o in options if o == "--checkpointing")
    commands = [("benchmarks.train", "--shape", shape, "--method", method, *both)]
    if peer:
        one_width = (
            ("--pad-to", "16384") if peer == "trl_sft" else ()
        )  # without it TRL compiles for each width
        commands.append((f"benchmarks.peers.{peer}", "--shape", shape, *one_width, *options))
    return Comparison(
        "-".join(["train", shape, method, *(o.strip("-") for o in both)]), tuple(commands)
    )


def measure(comparison: Comparison, repeats: int, failed: list[str]) -> list[dict]:
    """Return the records of a comparison; the runs of one contender are pooled."""
    runs: list[list[list[dict]]] = [[] for _ in comparison.commands]
    for turn in range(1 if comparison.alone else repeats):
        for i in list(range(len(comparison.commands)))[:: -1 if turn % 2 else 1]:
            records, error = _call(comparison.commands[i])
            runs[i].append(records)
            failed += [f"{comparison.name}: {' '.join(comparison.commands[i])}: {error}"] * bool(
                error
            )
    measured: list[dict] = []
    for of_contender in runs:
        of_contender = [records for records in of_contender if records]
        if not of_contender:
            continue
        if comparison.alone:
            measured += of_contender[0]
        else:
            measured.append(pooled([records[0] for records in of_contender]))
    return measured


def pooled(records: list[dict]) -> dict:
    """Return one record for the runs of one contender.

    It is the record of the middle run, with the median of all runs and their widest quartiles.
    """
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
    """Run a command; return the records that it wrote, and its error or an empty string."""
    print("+", " ".join(command), file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--out", str(out)],
            stdout=sys.stderr,
            cwd=Path(__file__).parents[1],
        )
        try:
            error = f"exit code {code}" if (code := process.wait(MAX_SECONDS)) else ""
        except subprocess.TimeoutExpired:
            error = f"stopped after {MAX_SECONDS} s"
            process.terminate()
            time.sleep(5)  # it writes what it has
            process.kill()
            process.wait()
        except BaseException:
            process.terminate()
            raise
        written = json.loads(out.read_text(encoding="utf-8")) if out.exists() else []
    return (written if isinstance(written, list) else [written]), error


def missing(comparison: Comparison) -> str | None:
    """Return the package that a comparison needs and that is not installed."""
    needs = {"benchmarks.peers.trl_sft": "trl", "benchmarks.train": "tarazu"}
    return next(
        (
            needs[c[0]]
            for c in comparison.commands
            if c[0] in needs and not importlib.util.find_spec(needs[c[0]])
        ),
        None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="comparisons whose names hold this")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each contender")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--into", type=Path, help="then write the tables into this file")
    args = parser.parse_args()
    import torch

    failed: list[str] = []
    device = re.sub(r"[^a-z0-9]+", "-", common.device_name().lower()).strip("-")
    for comparison in comparisons(torch.cuda.is_available()):
        if args.only not in comparison.name:
            continue
        if package := missing(comparison):
            print(
                f"{comparison.name}: left out, {package} is not installed (benchmarks/README.md)",
                file=sys.stderr,
            )
        elif records := measure(comparison, args.repeats, failed):
            common.write(args.results / f"{comparison.name}-{device}.json", records)
    if args.into:
        table.insert(args.into, table.markdown(common.read(args.results)))
    if failed:
        raise SystemExit("not measured:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
