"""`tarazu caption`: captions of image files by a trained model, and heat maps of its attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tarazu.captions.data.images import open_image
from tarazu.captions.data.vocabulary import SOS
from tarazu.captions.decoding.beam_search import beam_search
from tarazu.captions.inference import attention_heatmap, trained_model
from tarazu.captions.inference.trained_model import LoadedCaptioner
from tarazu.captions.metrics.attention_entropy import attention_entropy
from tarazu.engine.progress import log
from tarazu.errors import UserError
from tarazu.storage.atomic_io import replace_nonfinite


def caption(
    run_path: str,
    images: list[str],
    beam: int = 3,
    heatmap: str | None = None,
    as_json: bool = False,
) -> None:
    """Print a caption of each image. An unreadable image does not stop the others.

    Args:
        run_path: DIR/METHOD.
        images: image files.
        beam: width of the search.
        heatmap: file for a heat map of the attention; with several images, each image's name is
            added to it.
        as_json: print a JSON list with captions, scores and attention.

    Raises:
        UserError: there is no finished run, an image cannot be read, or no heat map can be drawn.
    """
    model = trained_model.load(run_path)
    if heatmap:
        _check_heatmap(model, heatmap)
    answers, unreadable = [], []
    for image in images:
        try:
            answer = caption_image(model, image, beam)
        except UserError as error:
            unreadable.append(image)
            answers.append({"image": image, "error": error.message, "hint": error.hint})
            log(str(error))
            continue
        if heatmap:
            answer["heatmap"] = _draw(model, image, answer, heatmap, several=len(images) > 1)
            log(f"heat map: {answer['heatmap']}")
        answers.append(answer)
        if not as_json:
            print(answer["caption"] if len(images) == 1 else f"{image}: {answer['caption']}")
    if as_json:
        print(json.dumps(replace_nonfinite(answers), ensure_ascii=False, indent=1))
    if unreadable:
        raise UserError(
            f"{len(unreadable)} of {len(images)} images could not be captioned",
            location=", ".join(unreadable),
        )


def caption_image(
    model: LoadedCaptioner, image: str | bytes | Path, beam: int = 3
) -> dict[str, Any]:
    """Caption one image.

    Args:
        model: the model.
        image: a file, or its bytes.
        beam: width of the search.

    Returns:
        "image", "caption", "words", "score", "beams" (all captions of the beam) and, for a model
        with attention, "attention" (weights of each word over the positions) and "entropy" (nats).

    Raises:
        UserError: the image cannot be read.
    """
    inputs = model.tensor([model.pixels(open_image(image))])
    with torch.no_grad():
        hypotheses = beam_search(
            model.model,
            inputs,
            beam,
            model.vocabulary.max_length,
            model.recipe.length_penalty,
            model.recipe.block_trigrams,
            model.recipe.early_stopping,
        )[0]
        best = hypotheses[0]
        tokens = torch.tensor([[SOS, *best.token_ids[:-1]]], device=model.device)
        alphas = model.model.forward_teacher_forced(inputs, tokens)[1]
    lines = [model.vocabulary.decode(hypothesis.token_ids) for hypothesis in hypotheses]
    answer = {
        "image": image if isinstance(image, str) else None,
        "caption": " ".join(lines[0]),
        "words": lines[0],
        "score": best.score,
        "beams": [
            {"caption": " ".join(line), "score": hypothesis.score}
            for line, hypothesis in zip(lines, hypotheses, strict=True)
        ],
    }
    if alphas is not None:
        alpha = alphas[0].float().cpu().numpy()  # (words, P)
        answer["attention"] = np.round(alpha, 6).tolist()
        answer["entropy"] = attention_entropy(alpha).tolist()
    return answer


def _draw(
    model: LoadedCaptioner, image: str, answer: dict[str, Any], out: str, several: bool
) -> str:
    """Draw the heat map of an answer and return its path."""
    path = Path(out)
    if several:
        path = path.with_name(f"{path.stem}-{Path(image).stem}{path.suffix}")
    attention_heatmap.draw(
        model.pixels(open_image(image)), answer["words"], np.array(answer["attention"]), path
    )
    return str(path)


def _check_heatmap(model: LoadedCaptioner, out: str) -> None:
    """Raise `UserError` if the model has no attention or the path cannot be written."""
    members = getattr(model.model, "members", [model.model])
    members = [getattr(member, "model", member) for member in members]  # inside a HorizontalFlip
    if all(member.decoder.input_kind == "pooled" for member in members):
        raise UserError(
            "this model has no attention: its input is one vector",
            location="--heatmap",
            hint="use show_attend_tell or transformer",
        )
    if Path(out).suffix.lower() not in (".png", ".svg"):
        raise UserError("a heat map is a .png or an .svg", location=out)
    if not Path(out).resolve().parent.is_dir():
        raise UserError("no such folder", location=str(Path(out).parent))
