"""Evaluation of a trained model on a split: loss, captions, scores, errors and attention."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tarazu.captions.dataset import CaptionData
from tarazu.captions.evaluation import error_analysis
from tarazu.captions.evaluation.baselines import compute_baselines
from tarazu.captions.evaluation.generation import attention_maps, caption_texts, generate_captions
from tarazu.captions.metrics.attention_entropy import attention_entropy
from tarazu.captions.metrics.scorer import Scorer
from tarazu.captions.settings import CaptionsRecipe
from tarazu.captions.trainable import TrainableCaptioner
from tarazu.captions.training.batching import make_batches
from tarazu.engine.ledger import Ledger
from tarazu.storage.atomic_io import reporting_corruption, write_json, write_jsonl
from tarazu.storage.run_folder import RunDir

SHOWN_IMAGES = 8  # random images with attention maps, the same for every method
EXTREME_IMAGES = 5  # of a method's best and worst images, shown as well
FREQUENT_WORDS = 40  # words whose entropy is listed


def mean_loss(
    model: TrainableCaptioner, data: CaptionData, split: str, limit: int, rows: int | None = None
) -> float:
    """Return the mean loss of a split's tokens, in nats.

    Args:
        model: the model, in eval mode.
        data: the prepared data.
        split: the split.
        limit: maximum of tokens in a batch.
        rows: use only so many of the first rows.
    """
    total, count = torch.zeros((), device=data.device, dtype=torch.float64), 0
    row_list = list(range(data.size(split) if rows is None else rows))
    for batch in make_batches(data, split, row_list, limit, model.groups_captions()):
        loss = model.loss(batch.to(data.device))
        total, count = total + loss.total.double(), count + loss.count
    return float(total) / count


def split_scorer(data: CaptionData, split: str) -> Scorer:
    """Return the split's scorer, which is created once."""
    if split not in data.scorers:
        data.scorers[split] = Scorer(data.references(split))
    return data.scorers[split]


def validate(
    model: TrainableCaptioner, data: CaptionData, recipe: CaptionsRecipe
) -> dict[str, float]:
    """Return loss, and BLEU-4 and CIDEr of greedy captions, on the validation split."""
    loss = mean_loss(model, data, "validation", recipe.budget.micro_batch_tokens)
    captions = generate_captions(model, data, "validation", recipe, beams=1)
    scorer = split_scorer(data, "validation")
    return {"loss": loss, **scorer.validation_scores(caption_texts(captions, data))}


def evaluate(
    model: TrainableCaptioner,
    data: CaptionData,
    recipe: CaptionsRecipe,
    folder: Path,
    ledger: Ledger,
) -> dict[str, Any]:
    """Evaluate a model on the test split and write samples.jsonl.

    Args:
        model: the model, in eval mode.
        data: the prepared data.
        recipe: the recipe.
        folder: the run's folder.
        ledger: times the phases `evaluate` and `generate`.

    Returns:
        The contents of metrics.json.
    """
    with ledger.phase("evaluate"), torch.autocast(data.device.type, enabled=False):
        loss = mean_loss(model, data, "test", recipe.budget.micro_batch_tokens)
    model.encoded_images = {}  # weights do not change until the end of the evaluation
    with ledger.phase("generate"):
        captions = {"greedy": generate_captions(model, data, "test", recipe, 1)}
        for beams in dict.fromkeys([3, *recipe.extra_beams]):
            captions[f"beam{beams}"] = generate_captions(model, data, "test", recipe, beams)
    texts = {decoding: caption_texts(by_image, data) for decoding, by_image in captions.items()}
    with ledger.phase("evaluate"):
        scorer = split_scorer(data, "test")
        scores = {decoding: scorer.score(by_image) for decoding, by_image in texts.items()}
        alphas = attention_maps(model, data, captions["beam3"])
        model.encoded_images = None
        analysis = error_analysis.analyse(
            texts["beam3"], data.references("test"), training_captions(data)
        )
        write_jsonl(folder / "samples.jsonl", samples(texts, alphas, scorer, analysis, data))
        compare_errors(data, RunDir(folder), analysis)
    if not data.baselines:  # the same for every method
        data.baselines = compute_baselines(data.references("test"), training_captions(data))
    return {
        "split": "test",
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "images": len(data.names["test"]),
        "decoding": scores,
        "baselines": data.baselines,
        "diversity": analysis["diversity"],
        "errors": analysis["errors"],
        "entropy": entropy_summary(alphas, texts["beam3"]),
    }


def training_captions(data: CaptionData) -> list[str]:
    """Return all raw captions of the training split."""
    return [text for captions in data.references("train").values() for text in captions]


def compare_errors(data: CaptionData, run: RunDir, analysis: dict[str, Any]) -> None:
    """Write errors.json: the errors of all finished methods with this run's seed.

    Args:
        data: the prepared data.
        run: this run.
        analysis: `error_analysis.analyse`'s result of this run.

    Raises:
        UserError: a file of another run is damaged.
    """
    analyses = {run.name: analysis}
    for other in data.folder.runs():
        if other.seed == run.seed and other.name != run.name and other.done():
            with reporting_corruption(other.path / "metrics.json", other.path / "samples.jsonl"):
                categories = other.read_json("metrics.json")["errors"]["categories"]
                analyses[other.name] = {
                    "errors": {"categories": categories},
                    "per_image": {
                        line["id"]: line["errors"] for line in other.read_jsonl("samples.jsonl")
                    },
                }
    if len(analyses) > 1:
        comparison = {"seed": run.seed, **error_analysis.compare(analyses)}
        write_json(data.folder.path / "errors.json", comparison)


def entropy_summary(
    alphas: dict[str, np.ndarray] | None, texts: dict[str, str]
) -> dict[str, Any] | None:
    """Summarise how widely attention is spread, and how much it differs between words.

    Args:
        alphas: attention weights (words, P) by image.
        texts: the captions by image.

    Returns:
        "mean" and "max" entropy in nats (the maximum is log P); "fraction_of_max"; "variation", the
        mean total variation distance (0..1) of a word's map from the caption's mean map: near 0,
        all words attend to the same positions; "by_word" {word: {"nats", "count"}} of the most
        frequent words. None without attention.
    """
    if not alphas:
        return None
    by_word, variations = defaultdict(list), []
    for name, alpha in alphas.items():
        for word, nats in zip(texts[name].split(), attention_entropy(alpha), strict=True):
            by_word[word].append(float(nats))
        variations.append(float(np.abs(alpha - alpha.mean(0)).sum(1).mean() / 2))
    mean = float(np.mean([nats for values in by_word.values() for nats in values]))
    maximum = math.log(next(iter(alphas.values())).shape[1])
    frequent = sorted(by_word, key=lambda word: (-len(by_word[word]), word))[:FREQUENT_WORDS]
    return {
        "mean": mean,
        "max": maximum,
        "fraction_of_max": mean / maximum,
        "variation": float(np.mean(variations)),
        "by_word": {
            word: {"nats": float(np.mean(by_word[word])), "count": len(by_word[word])}
            for word in frequent
        },
    }


def samples(
    texts: dict[str, dict[str, str]],
    alphas: dict[str, np.ndarray] | None,
    scorer: Scorer,
    analysis: dict[str, Any],
    data: CaptionData,
) -> list[dict[str, Any]]:
    """Make the lines of samples.jsonl, one for each test image.

    Thumbnails are stored for a few random images and the best and worst ones, attention maps for
    the random ones.

    Args:
        texts: the captions by decoding setting and image; "beam3" is scored.
        alphas: attention weights (words, P) of "beam3" by image.
        scorer: of the test split.
        analysis: `error_analysis.analyse`'s result of "beam3".
        data: the prepared data.
    """
    scores = scorer.per_image(texts["beam3"])
    ranked = sorted(scores, key=lambda name: scores[name]["cider"])
    rng = np.random.default_rng(1)  # the same images for every method
    shown = rng.choice(data.names["test"], min(SHOWN_IMAGES, len(ranked)), replace=False).tolist()
    with_thumbnail = {*shown, *ranked[:EXTREME_IMAGES], *ranked[-EXTREME_IMAGES:]}
    with_thumbnail.add(data.names["test"][0])  # training samples are of this image
    lines = []
    for name in data.names["test"]:
        line = {
            "id": name,
            "image": data.save_thumbnail(name) if name in with_thumbnail else None,
            "references": data.captions[name],
            **{decoding: by_image[name] for decoding, by_image in texts.items()},
            "scores": scores[name],
            "errors": analysis["per_image"][name],
        }
        if name in shown and alphas:
            line["words"] = texts["beam3"][name].split()
            line["attention"] = np.round(alphas[name], 5).tolist()
        lines.append(line)
    return lines
