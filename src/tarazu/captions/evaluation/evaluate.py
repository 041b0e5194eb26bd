"""A trained model on a split: its sentences, their scores, what it said of which picture, and where it looked."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tarazu.captions.data.vocabulary import PAD, SOS
from tarazu.captions.dataset import CaptionData
from tarazu.captions.decoding import beam_search
from tarazu.captions.decoding.beam_search import Hypothesis
from tarazu.captions.evaluation import baselines, error_analysis
from tarazu.captions.metrics.scorer import Scorer
from tarazu.captions.settings import CaptionsRecipe
from tarazu.captions.trainable import TrainableCaptioner
from tarazu.storage.atomic_io import reporting_corruption, write_json, write_jsonl
from tarazu.storage.run_folder import RunDir

if TYPE_CHECKING:
    from tarazu.engine.ledger import Ledger

IMAGES_PER_BATCH = {"cpu": 64, "cuda": 500}  # pictures that are described together
SHOWN = 8  # pictures with their attention, the same for every method
EXTREMES = 5  # best and worst pictures of a method


def generate_captions(
    model: TrainableCaptioner,
    data: CaptionData,
    split: str,
    recipe: CaptionsRecipe,
    beams: int,
    names: list[str] | None = None,
) -> dict[str, Hypothesis]:
    """The best sentence for each picture of a split, in float32 whatever training uses."""
    names = names or data.names[split]
    found = {}
    size = IMAGES_PER_BATCH[data.device.type]
    with torch.no_grad(), torch.autocast(data.device.type, enabled=False):
        for start in range(0, len(names), size):
            some = names[start : start + size]
            sentences = beam_search.beam_search(
                model.module,
                _seen(model, data, some),
                beams,
                data.vocabulary.max_length,
                recipe.length_penalty,
                recipe.block_trigrams,
                recipe.early_stopping,
            )
            found |= {name: best[0] for name, best in zip(some, sentences, strict=True)}
    return found


def texts(written: dict[str, Hypothesis], data: CaptionData) -> dict[str, str]:
    return {
        name: " ".join(data.vocabulary.decode(sentence.token_ids))
        for name, sentence in written.items()
    }


def scorer(data: CaptionData, split: str) -> Scorer:
    """The split's scorer, made once."""
    if split not in data.scorers:
        data.scorers[split] = Scorer(data.references(split))
    return data.scorers[split]


def evaluate(
    model: TrainableCaptioner,
    data: CaptionData,
    recipe: CaptionsRecipe,
    folder: Path,
    ledger: Ledger,
) -> dict:
    """Scores of greedy and of beams on the test split; writes samples.jsonl and the pictures that it shows."""
    model.encoded_images = {}
    with ledger.phase("generate"):
        written = {"greedy": generate_captions(model, data, "test", recipe, 1)}
        for beams in dict.fromkeys([3, *recipe.extra_beams]):
            written[f"beam{beams}"] = generate_captions(model, data, "test", recipe, beams)
    said = {how: texts(sentences, data) for how, sentences in written.items()}
    with ledger.phase("evaluate"):
        judge = scorer(data, "test")
        decoded = {how: judge.score(lines) for how, lines in said.items()}
        alphas = attention(model, data, written["beam3"])
        model.encoded_images = None
        analysis = error_analysis.analyse(
            said["beam3"],
            data.references("test"),
            [text for texts in data.references("train").values() for text in texts],
        )
        write_jsonl(folder / "samples.jsonl", samples(said, alphas, judge, analysis, data))
        compare_errors(data, RunDir(folder), analysis)
    return {
        "decoding": decoded,
        "baselines": _yardsticks(data),
        "diversity": analysis["diversity"],
        "errors": analysis["errors"],
        "entropy": entropy(alphas, said["beam3"]),
    }


def compare_errors(data: CaptionData, run: RunDir, analysis: dict) -> None:
    """errors.json: the errors of all methods with this seed that are done, on the same pictures; grows with every
    method."""
    found = {
        run.name: {
            "categories": analysis["errors"]["categories"],
            "per_image": analysis["per_image"],
        }
    }
    for other in data.folder.runs():
        if other.seed == run.seed and other.name != run.name and other.done():
            with reporting_corruption(other.path / "metrics.json", other.path / "samples.jsonl"):
                found[other.name] = {
                    "categories": other.read_json("metrics.json")["errors"]["categories"],
                    "per_image": {
                        line["id"]: line["errors"] for line in other.read_jsonl("samples.jsonl")
                    },
                }
    if len(found) > 1:
        write_json(
            data.folder.path / "errors.json", {"seed": run.seed, **error_analysis.compare(found)}
        )


def attention(
    model: TrainableCaptioner, data: CaptionData, written: dict[str, Hypothesis]
) -> dict[str, np.ndarray] | None:
    """Where the model looked while it wrote each word, (words, P) by picture; None for a decoder that does not look."""
    names, found = list(written), {}
    for start in range(0, len(names), IMAGES_PER_BATCH[data.device.type]):
        some = names[start : start + IMAGES_PER_BATCH[data.device.type]]
        lines = [[SOS, *written[name].token_ids] for name in some]
        width = max(map(len, lines))
        tokens = torch.tensor(
            [line + [PAD] * (width - len(line)) for line in lines], device=data.device
        )
        nothing = torch.empty(
            0, dtype=torch.long, device=data.device
        )  # no word's logits are wanted
        with torch.no_grad(), torch.autocast(data.device.type, enabled=False):
            alphas = model.module.forward_teacher_forced(
                _seen(model, data, some), tokens, at=nothing
            )[1]
        if alphas is None:
            return None
        found |= {
            name: alpha[: len(written[name].token_ids)].float().cpu().numpy()
            for name, alpha in zip(some, alphas, strict=True)
        }
    return found


def entropy(alphas: dict[str, np.ndarray] | None, said: dict[str, str]) -> dict | None:
    """How widely the model looks, in nats: 0 is one place, log P is everywhere alike; by word, and how the maps of one
    sentence differ from their mean (total variation, 0..1): near 0 means that it looks at the same places for every
    word."""
    if not alphas:
        return None
    by_word, differ = defaultdict(list), []
    for name, alpha in alphas.items():
        nats = -(alpha * np.log(np.maximum(alpha, 1e-12))).sum(1)
        for word, value in zip(said[name].split(), nats, strict=True):
            by_word[word].append(float(value))
        differ.append(float(np.abs(alpha - alpha.mean(0)).sum(1).mean() / 2))
    everything = [value for values in by_word.values() for value in values]
    most = math.log(next(iter(alphas.values())).shape[1])
    frequent = sorted(by_word, key=lambda word: (-len(by_word[word]), word))[:40]
    words = {
        word: {"nats": float(np.mean(by_word[word])), "count": len(by_word[word])}
        for word in frequent
    }
    return {
        "mean": float(np.mean(everything)),
        "max": most,
        "share": float(np.mean(everything)) / most,
        "variation": float(np.mean(differ)),
        "by_word": words,
    }


def samples(
    said: dict[str, dict[str, str]],
    alphas: dict[str, np.ndarray] | None,
    judge: Scorer,
    analysis: dict,
    data: CaptionData,
) -> list[dict]:
    """One object per test picture; pictures and attention for the few that a report shows."""
    own = judge.per_image(said["beam3"])
    order = sorted(own, key=lambda name: own[name]["cider"])
    fixed = (
        np.random.default_rng(1)
        .choice(data.names["test"], min(SHOWN, len(order)), replace=False)
        .tolist()
    )
    pictured = {*fixed, *order[:EXTREMES], *order[-EXTREMES:], data.names["test"][0]}
    lines = []
    for name in data.names["test"]:
        line = {
            "id": name,
            "image": data.save_thumbnail(name) if name in pictured else None,
            "references": data.captions[name],
        }
        line |= {how: texts[name] for how, texts in said.items()}
        line |= {"scores": own[name], "errors": analysis["per_image"][name]}
        if name in fixed and alphas:
            line |= {
                "words": said["beam3"][name].split(),
                "attention": np.round(alphas[name], 5).tolist(),
            }
        lines.append(line)
    return lines


def _seen(model: TrainableCaptioner, data: CaptionData, names: list[str]) -> torch.Tensor:
    """What the model is given of the named pictures. Pixels go through the encoder before the beams multiply them, and
    within `evaluate` once for all ways of decoding."""
    places = torch.tensor([data.index_of[name] for name in names], device=data.device)
    if not model.encoder_tuned or getattr(model.module, "members", None) is not None:
        return model.inputs_for(places)
    seen, key = model.encoded_images, tuple(names)
    if seen is None:
        return model.module.encode_images(model.inputs_for(places))
    if key not in seen:
        seen[key] = model.module.encode_images(model.inputs_for(places))
    return seen[key]


def _yardsticks(data: CaptionData) -> dict:
    """The same for every method: computed once."""
    if not data.baselines:
        data.baselines = baselines.compute_baselines(
            data.references("test"),
            [text for texts in data.references("train").values() for text in texts],
        )
    return data.baselines
