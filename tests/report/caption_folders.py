"""Small run folders of invented captioning studies. Every number is invented for tests."""

from __future__ import annotations

import copy
import io
import math
import random
from pathlib import Path

from folders import MADE_UP, events, hostile_text, ledger, write, write_proof


def jpeg(seed: int, size: int = 224) -> bytes:
    """An image of one ellipse."""
    from PIL import Image, ImageDraw

    rng = random.Random(seed)
    image = Image.new("RGB", (size, size), tuple(rng.randint(0, 255) for _ in range(3)))
    ImageDraw.Draw(image).ellipse(
        (40, 60, 150, 170), fill=tuple(rng.randint(0, 255) for _ in range(3))
    )
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def english_text(i: int) -> str:
    return f"a red circle near square number {i}"


def captions_folder(path: Path, hostile: bool = False) -> Path:
    """Write a captioning study of three models on twelve images.

    Args:
        hostile: whether all texts are `hostile_text`.
    """
    text = hostile_text if hostile else english_text
    ids = [f"drawn-{i:03d}.jpg" for i in range(12)]
    (path / "images").mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(ids):
        (path / "images" / name).write_bytes(jpeg(i))
    recipe = "task: captions\nencoder: efficientnet-lite0\nprefer: quality\nbudget: {epochs: 5}\n"
    write(path / "resolved.yaml", recipe)
    data = copy.deepcopy(MADE_UP["captions_data"])
    processed = {"processed": [["a", "red", "circle"]] * 5, "ids": [[1, 5, 6, 7, 2, 0, 0]] * 5}
    data["examples"] = [
        {"id": name, "image": f"images/{name}", "captions": [text(i)] * 5, **processed}
        for i, name in enumerate(ids[:5])
    ]
    if hostile:
        data["structure"]["top_words"][0][0] = text(1)
    write(path / "data.json", data)
    write(path / "model.json", MADE_UP["captions_model"])
    write(path / "environment.json", MADE_UP["environment"])
    for name, cider in (("show_and_tell", 52.0), ("show_attend_tell", 60.0), ("transformer", 57.0)):
        caption_run(path / name / "seed-0", name, cider, ids, text)
    return path


def scores(level: float) -> dict:
    """Corpus scores of captions whose CIDEr is `level`."""
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


def caption_run(folder: Path, name: str, level: float, ids: list[str], text) -> None:
    """Write the files of a run whose CIDEr is `level`. Show and Tell has no attention."""
    rng, attends = random.Random(name), name != "show_and_tell"
    settings = {"learning_rate": 1e-3}
    run_info = {"name": name, "kind": name, "seed": 0, "settings": settings, "status": "done"}
    write(folder / "run.json", run_info)
    rows = events(
        2.5,
        rng,
        epochs=5,
        extra=lambda fraction: {"bleu4": 20 * fraction, "cider": level * fraction},
    )
    samples = [{"id": ids[0], "output": text(3)}]
    rows += [
        {"event": "sample", "step": 12 * epoch, "epoch": float(epoch), "samples": samples}
        for epoch in range(1, 6)
    ]
    write(folder / "events.jsonl", rows)
    write(folder / "ledger.json", ledger(level * 3, 5_000_000))
    write_proof(folder, [f"decoder.{i}" for i in range(10)])
    write(folder / "metrics.json", caption_metrics(level, attends))
    write(
        folder / "samples.jsonl",
        [sample(rng, i, name, level, text, attends and i < 2) for i, name in enumerate(ids)],
    )


def caption_metrics(level: float, attends: bool) -> dict:
    """metrics.json of a run whose CIDEr is `level`."""
    rates = {"precision": 0.6, "recall": 0.4, "f1": 0.48, "mentions": 20, "expected": 30}
    categories = {
        "objects": rates,
        "colours": rates,
        "counts": {**rates, "precision": None, "f1": None},
    }
    return {
        "split": "test",
        "loss": 2.5,
        "perplexity": 12.0,
        "images": 12,
        "decoding": {"greedy": scores(level - 2), "beam3": scores(level)},
        "baselines": {
            "human": scores(83.0),
            "constant": scores(9.6),
            "shuffled": scores(4.5),
        },
        "errors": {
            "categories": categories,
            "hallucinated": [["dog", 4]],
            "missed": [["ball", 3]],
        },
        "diversity": {
            "vocabulary_used": 40,
            "novel_fraction": 0.8,
            "distinct_fraction": 0.7,
            "words_mean": 9.1,
        },
        "entropy": {"mean": 2.9, "max": math.log(49), "variation": 0.3} if attends else None,
    }


def sample(rng: random.Random, i: int, name: str, level: float, text, attention: bool) -> dict:
    """The captions of one test image; with attention over 7 x 7 regions for four words."""
    content = {
        "id": name,
        "image": f"images/{name}",
        "references": [text(i)] * 5,
        "greedy": text(i),
        "beam3": text(i + 1),
        "scores": {"bleu4": rng.random() * 40, "cider": level + rng.gauss(0, 20)},
        "errors": {"hallucinated": ["dog"], "missed": ["ball"]},
    }
    if attention:
        weights = [[rng.random() ** 4 for _ in range(49)] for _ in range(4)]
        content["words"] = ["a", "red", "circle", "<eos>"]
        content["attention"] = [[w / sum(row) for w in row] for row in weights]
    return content
