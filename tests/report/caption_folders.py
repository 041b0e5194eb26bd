"""Small made-up captioning studies for the report's tests; every number is invented."""

from __future__ import annotations

import copy
import io
import math
import random
from pathlib import Path

from folders import MADE_UP, events, hostile_text, ledger, write, write_proof


def jpeg(seed: int, size: int = 224) -> bytes:
    from PIL import Image, ImageDraw

    rng = random.Random(seed)
    image = Image.new("RGB", (size, size), tuple(rng.randint(0, 255) for _ in range(3)))
    ImageDraw.Draw(image).ellipse(
        (40, 60, 150, 170), fill=tuple(rng.randint(0, 255) for _ in range(3))
    )
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def captions_folder(path: Path, hostile: bool = False) -> Path:
    """A captioning study: three models on twelve drawn images."""
    say = hostile_text if hostile else (lambda i: f"a red circle near square number {i}")
    ids = [f"drawn-{i:03d}.jpg" for i in range(12)]
    (path / "images").mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(ids):
        (path / "images" / name).write_bytes(jpeg(i))
    write(
        path / "resolved.yaml",
        "task: captions\nencoder: efficientnet-lite0\nprefer: quality\nbudget: {epochs: 5}\n",
    )
    data = copy.deepcopy(MADE_UP["captions_data"])
    processed = {"processed": [["a", "red", "circle"]] * 5, "ids": [[1, 5, 6, 7, 2, 0, 0]] * 5}
    data["examples"] = [
        {"id": n, "image": f"images/{n}", "captions": [say(i)] * 5, **processed}
        for i, n in enumerate(ids[:5])
    ]
    if hostile:
        data["structure"]["top_words"][0][0] = say(1)
    for name, value in (
        ("data", data),
        ("model", MADE_UP["captions_model"]),
        ("environment", MADE_UP["environment"]),
    ):
        write(path / f"{name}.json", value)
    for name, level in (("show_and_tell", 52.0), ("show_attend_tell", 60.0), ("transformer", 57.0)):
        caption_run(path / name / "seed-0", name, level, ids, say)
    return path


def scores(level: float) -> dict:
    return {
        "bleu": [level, level * 0.7, level * 0.5, level * 0.35],
        "bleu_no_penalty": [level * 1.05, level * 0.74, level * 0.53, level * 0.37],
        "brevity_penalty": 0.95,
        "cider": level,
        "rouge_l": level * 0.8,
        "meteor": None,
        "tokenizer": "ptb_like",
        "intervals": {"bleu4": [level * 0.33, level * 0.37], "cider": [level - 3, level + 3]},
    }


def caption_run(folder: Path, name: str, level: float, ids: list[str], say) -> None:
    rng = random.Random(name)
    write(
        folder / "run.json",
        {
            "name": name,
            "kind": name,
            "seed": 0,
            "settings": {"learning_rate": 1e-3},
            "status": "done",
        },
    )
    found = events(
        2.5, rng, epochs=5, extra=lambda share: {"bleu4": 20 * share, "cider": level * share}
    )
    for epoch in range(1, 6):
        samples = [{"id": ids[0], "output": say(3)}]
        found.append(
            {"event": "sample", "step": 12 * epoch, "epoch": float(epoch), "samples": samples}
        )
    write(folder / "events.jsonl", found)
    write(folder / "ledger.json", ledger(level * 3, 5_000_000))
    write_proof(folder, [f"decoder.{i}" for i in range(10)])
    looks = name != "show_and_tell"
    rate = {"precision": 0.6, "recall": 0.4, "f1": 0.48, "mentions": 20, "expected": 30}
    categories = {
        "objects": rate,
        "colours": rate,
        "counts": {**rate, "precision": None, "f1": None},
    }
    metrics = {"split": "test", "loss": 2.5, "perplexity": 12.0, "images": 12}
    metrics["decoding"] = {"greedy": scores(level - 2), "beam3": scores(level)}
    metrics["baselines"] = {
        "human": scores(83.0),
        "constant": scores(9.6),
        "shuffled": scores(4.5),
    }
    metrics["errors"] = {
        "categories": categories,
        "hallucinated": [["dog", 4]],
        "missed": [["ball", 3]],
    }
    metrics["diversity"] = {
        "vocabulary_used": 40,
        "novel_fraction": 0.8,
        "distinct_fraction": 0.7,
        "words_mean": 9.1,
    }
    metrics["entropy"] = {"mean": 2.9, "max": math.log(49), "variation": 0.3} if looks else None
    write(folder / "metrics.json", metrics)
    write(
        folder / "samples.jsonl",
        [sample(rng, i, name, level, say, looks and i < 2) for i, name in enumerate(ids)],
    )


def sample(rng: random.Random, i: int, name: str, level: float, say, looks: bool) -> dict:
    found = {
        "id": name,
        "image": f"images/{name}",
        "references": [say(i)] * 5,
        "greedy": say(i),
        "beam3": say(i + 1),
    }
    found["scores"] = {"bleu4": rng.random() * 40, "cider": level + rng.gauss(0, 20)}
    found["errors"] = {"hallucinated": ["dog"], "missed": ["ball"]}
    if looks:
        weights = [[rng.random() ** 4 for _ in range(49)] for _ in range(4)]
        found["words"] = ["a", "red", "circle", "<eos>"]
        found["attention"] = [[w / sum(row) for w in row] for row in weights]
    return found
