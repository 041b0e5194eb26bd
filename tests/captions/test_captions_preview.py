"""The terminal view of a data.json."""

import io
import json
from pathlib import Path

from rich.console import Console

from tarazu.captions.data import preview


def test_everything_is_shown_and_captions_are_not_markup():
    lengths = {
        "mean": 8.5,
        "p50": 8,
        "p90": 12,
        "p99": 15,
        "max": 19,
        "histogram": {"edges": [0, 1], "counts": [1]},
    }
    data = {
        "source": "F", "layout": "official", "split_by": "image", "note": "only a few",
        "splits": {"train": {"images": 6000, "captions": 30000}},
        "structure": {
            "lengths_per_split": {"train": lengths}, "vocabulary": 3482,
            "min_count": 3, "max_length": 24,
            "truncated_captions": 7, "unknown_test_fraction": 0.023,
            "size_by_min_count": {"1": 7000}, "top_words": [["a", 9]],
        },
        "problems": [{"reason": "phantom", "kind": "dropped", "count": 1, "names": ["x.jpg.1"]}],
        "duplicates": [{"a": "1.jpg", "b": "2.jpg", "kind": "near"}],
        "examples": [{"id": "p.jpg", "captions": ["A [bold]dog[/bold] ."],
                      "processed": [["a", "dog"]], "ids": [[1, 4, 9, 2, 0]]}],
    }  # fmt: skip
    out = io.StringIO()
    preview.show(json.loads(json.dumps(data)), Console(file=out, width=150))
    text = out.getvalue()
    for part in (
        "[bold]dog[/bold]",
        "<sos> 4 9 <eos> <pad>",
        "30,000",
        "2.3%",
        "x.jpg.1",
        "1.jpg = 2.jpg",
        "only a few",
    ):
        assert part in text, part
    assert Path(preview.__file__).read_text().count("import torch") == 0
