"""The tables of docs/performance.md, made from the records in `benchmarks/results/`.

    python -m benchmarks.table                             # prints them
    python -m benchmarks.table --into docs/performance.md  # writes them between the page's marks

Each line of tarazu has a ratio: the one measured in one process, in turns, if there is one.
Otherwise it is tarazu's median over that of the fastest peer with the same table, model, group
and device.
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
    """Return the newest record of each measurement, sorted as the table shows them.

    In each group tarazu comes first, then the peers by speed.
    """
    identity = ("device", "table", "shape", "group", "who", "setting")
    newest_by_identity: dict[tuple, dict] = {}
    for record in sorted(records, key=lambda r: r["date"]):
        newest_by_identity[tuple(record[key] for key in identity)] = record
    return sorted(
        newest_by_identity.values(),
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
    """Return tarazu's speed over that of the fastest peer; None for a peer, or without one."""
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
    """Return one table per device, under a line with its name and the date of its newest record."""
    kept, parts = newest(records), []
    for device in dict.fromkeys(record["device"] for record in kept):
        of_device = [record for record in kept if record["device"] == device]
        lines = [HEAD, ("---",) * len(HEAD)]
        lines += [_cells(record, ratio(record, of_device)) for record in of_device]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        parts.append(f"{device}, {max(r['date'] for r in of_device)[:10]}:\n\n{table}\n")
    return "\n".join(parts) or "Nothing was measured yet.\n"


def insert(path: Path, text: str) -> None:
    """Write `text` between the marks of a file.

    Raises:
        SystemExit: the file does not hold each mark once.
    """
    content = path.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        raise SystemExit(f"{path} must hold one line {BEGIN} and one line {END}")
    before, rest = content.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}", encoding="utf-8")


def _cells(record: dict, speed_ratio: float | None) -> tuple[str, ...]:
    """The cells of a record's row."""
    work = [record["shape"], record["group"]]
    if record["table"] == "generation":
        work.insert(1, "generation")
    # Only training on the published shapes has a bound and a first step.
    of_shape = record["table"] == "train"
    bound_fraction = record.get("bound_share") if of_shape else None
    first_step = record.get("first_step_seconds") if of_shape else None
    return (
        ", ".join(filter(None, work)),
        f"**{record['who']}**" if ours(record) else record["who"],
        record["setting"],
        _rate(record),
        f"{record['peak_gib']:.1f}" if record.get("peak_gib") else "-",
        f"{bound_fraction:.0%}" if bound_fraction else "-",
        f"{first_step:.0f} s" if first_step else "-",
        f"**{speed_ratio:.2f}**" if speed_ratio else "-",
    )


def _rate(record: dict) -> str:
    """Median speed with its quartiles, or why a measurement stopped."""
    speed = record.get("tokens_per_second") or record.get("images_per_second")
    if not speed:
        return record.get("stopped") or "-"
    digits = 0 if speed["median"] >= 100 else 1
    median, low, high = (f"{speed[key]:,.{digits}f}" for key in ("median", "low", "high"))
    unit = " images/s" if record.get("images_per_second") else ""
    seconds = record.get("epoch_seconds")
    epoch = f"; an epoch in {seconds:.1f} s" if seconds else ""
    return f"{median}{unit} ({low} to {high}){epoch}"


def _speed(record: dict) -> float:
    speed = record.get("tokens_per_second") or record.get("images_per_second") or {}
    return speed.get("median") or 0.0


def _rank(table: str) -> int:
    return ORDER.index(table) if table in ORDER else len(ORDER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    parser.add_argument("--into", type=Path, help="a file with the two marks")
    args = parser.parse_args()
    text = markdown(common.read(args.results))
    if args.into:
        insert(args.into, text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
