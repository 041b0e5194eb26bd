"""The README's table of speed, made from the records in `benchmarks/results/`.

    python -m benchmarks.table                  # prints it
    python -m benchmarks.table --into README.md # writes it between the two marks that stand there

A line of tarazu's has a ratio: the one measured in turns in one process where there is one, else its median over that of
the fastest peer with the same table, model, group and device.
"""

from __future__ import annotations

from benchmarks import common

# isort: split

import argparse
from pathlib import Path

BEGIN, END = "<!-- benchmarks: made by `make bench` -->", "<!-- /benchmarks -->"
HEAD = (
    "model, what",
    "who",
    "setting",
    "tokens/s (quartiles)",
    "peak GiB",
    "of the bound",
    "first step",
    "ratio",
)
ORDER = ("train", "generation", "cpu", "captions")


def newest(records: list[dict]) -> list[dict]:
    """One record for each thing measured, the last one; ours first in each group, then the peers by speed."""
    last: dict[tuple, dict] = {}
    for one in sorted(records, key=lambda r: r["date"]):
        last[tuple(one[key] for key in ("device", "table", "shape", "group", "who", "setting"))] = (
            one
        )
    return sorted(
        last.values(),
        key=lambda r: (
            r["device"],
            _rank(r["table"]),
            r["table"],
            r["shape"],
            r["group"],
            not ours(r),
            -_speed(r),
            r["setting"],
        ),
    )


def ours(record: dict) -> bool:
    return record["who"].startswith("tarazu")


def ratio(record: dict, records: list[dict]) -> float | None:
    """How many times the best peer's rate; None for a peer, or without one."""
    if not ours(record):
        return None
    if record.get("ratio"):
        return record["ratio"]["median"]
    same = [
        r
        for r in records
        if not ours(r)
        and all(r[key] == record[key] for key in ("device", "table", "shape", "group"))
    ]
    best = max(map(_speed, same), default=0.0)
    return _speed(record) / best if best and _speed(record) else None


def markdown(records: list[dict]) -> str:
    """All records as one table for each device, under a line with its name and the date of its last measurement."""
    kept, parts = newest(records), []
    for device in dict.fromkeys(one["device"] for one in kept):
        own = [one for one in kept if one["device"] == device]
        lines = [HEAD, ("---",) * len(HEAD), *(_cells(one, ratio(one, own)) for one in own)]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        parts.append(f"{device}, {max(one['date'] for one in own)[:10]}:\n\n{table}\n")
    return "\n".join(parts) or "Nothing was measured yet.\n"


def insert(path: Path, text: str) -> None:
    """Writes `text` between the marks of a file. Raises `SystemExit` where they are missing."""
    content = path.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        raise SystemExit(f"{path} must hold one line {BEGIN} and one line {END}")
    before, rest = content.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}", encoding="utf-8")


def _cells(one: dict, times: float | None) -> tuple[str, ...]:
    share, first = one.get("bound_share"), one.get("first_step_seconds")
    small = (
        one["table"] == "train"
    )  # the bound and the first step are told for training on the published shapes only
    return (
        ", ".join(
            filter(
                None,
                (one["shape"], "generation" if one["table"] == "generation" else "", one["group"]),
            )
        ),
        f"**{one['who']}**" if ours(one) else one["who"],
        one["setting"],
        _rate(one),
        f"{one['peak_gib']:.1f}" if one.get("peak_gib") else "-",
        f"{share:.0%}" if share and small else "-",
        f"{first:.0f} s" if first and small else "-",
        f"**{times:.2f}**" if times else "-",
    )


def _rate(one: dict) -> str:
    speed = one.get("tokens_per_second") or one.get("images_per_second")
    if not speed:
        return one.get("stopped") or "-"
    digits = 0 if speed["median"] >= 100 else 1
    median, low, high = (f"{speed[key]:,.{digits}f}" for key in ("median", "low", "high"))
    unit = " images/s" if one.get("images_per_second") else ""
    epoch = f"; an epoch in {one['epoch_seconds']:.1f} s" if one.get("epoch_seconds") else ""
    return f"{median}{unit} ({low} to {high}){epoch}"


def _speed(one: dict) -> float:
    return (one.get("tokens_per_second") or one.get("images_per_second") or {}).get("median") or 0.0


def _rank(table: str) -> int:
    return ORDER.index(table) if table in ORDER else len(ORDER)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--results", type=Path, default=common.RESULTS)
    asked.add_argument("--into", type=Path, help="a file with the two marks")
    args = asked.parse_args()
    text = markdown(common.read(args.results))
    if args.into:
        insert(args.into, text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
