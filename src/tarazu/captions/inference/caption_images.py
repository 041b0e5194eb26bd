"""`tarazu caption`: what a trained model says of pictures, and where it looked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tarazu.captions.data.images import open_image
from tarazu.captions.data.vocabulary import SOS
from tarazu.captions.decoding import beam_search
from tarazu.captions.inference import attention_heatmap, trained_model
from tarazu.captions.inference.trained_model import LoadedCaptioner
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
    """Prints a caption for each image on stdout. What cannot be read is refused by name, and the others are still
    described.

    heatmap: write where the model looked here; with several images the image's name is added. Raises `UserError`.
    """
    model = trained_model.load(run_path)
    if heatmap:
        _check_heatmap(model, heatmap)
    found, refused = [], []
    for image in images:
        try:
            answer = caption_image(model, image, beam)
        except UserError as error:
            refused.append(image)
            found.append({"image": image, "error": error.message, "hint": error.hint})
            log(str(error))
            continue
        if heatmap:
            answer["heatmap"] = _draw(model, image, answer, heatmap, several=len(images) > 1)
            log(f"where it looked: {answer['heatmap']}")
        found.append(answer)
        if not as_json:
            print(answer["caption"] if len(images) == 1 else f"{image}: {answer['caption']}")
    if as_json:
        print(json.dumps(replace_nonfinite(found), ensure_ascii=False, indent=1))
    if refused:
        raise UserError(
            f"{len(refused)} of {len(images)} images could not be described",
            location=", ".join(refused),
        )


def caption_image(model: LoadedCaptioner, image: str | bytes | Path, beam: int = 3) -> dict:
    """The caption of one image, the beam's other sentences, and the attention of each word with its entropy in nats.

    Raises `UserError` when the image cannot be used.
    """
    seen = model.tensor([model.pixels(open_image(image))])
    with torch.no_grad():
        hypotheses = beam_search.beam_search(
            model.model,
            seen,
            beam,
            model.vocabulary.max_length,
            model.recipe.length_penalty,
            model.recipe.block_trigrams,
            model.recipe.early_stopping,
        )[0]
        best = hypotheses[0].token_ids
        alphas = model.model.forward_teacher_forced(
            seen, torch.tensor([[SOS, *best[:-1]]], device=model.device)
        )[1]
    lines = [model.vocabulary.decode(sentence.token_ids) for sentence in hypotheses]
    answer = {
        "image": image if isinstance(image, str) else None,
        "caption": " ".join(lines[0]),
        "words": lines[0],
        "score": hypotheses[0].score,
    }
    answer["beams"] = [
        {"caption": " ".join(line), "score": sentence.score}
        for line, sentence in zip(lines, hypotheses, strict=True)
    ]
    if alphas is not None:
        alpha = alphas[0].float().cpu().numpy()
        answer |= {
            "attention": np.round(alpha, 6).tolist(),
            "entropy": attention_heatmap.entropy(alpha).tolist(),
        }
    return answer


def _draw(model: LoadedCaptioner, image: str, answer: dict, out: str, several: bool) -> str:
    path = Path(out)
    if several:
        path = path.with_name(f"{path.stem}-{Path(image).stem}{path.suffix}")
    attention_heatmap.draw(
        model.pixels(open_image(image)), answer["words"], np.array(answer["attention"]), path
    )
    return str(path)


def _check_heatmap(model: LoadedCaptioner, out: str) -> None:
    decoders = [
        getattr(part, "decoder", None) for part in getattr(model.model, "members", [model.model])
    ]
    if all(decoder.input_kind == "pooled" for decoder in decoders):
        raise UserError(
            "this model has no attention: it sees the picture as one vector",
            location="--heatmap",
            hint="use show_attend_tell or transformer",
        )
    if Path(out).suffix.lower() not in (".png", ".svg"):
        raise UserError("a heat map is a .png or an .svg", location=out)
    if not Path(out).resolve().parent.is_dir():
        raise UserError("no such folder", location=str(Path(out).parent))
