"""ONNX: the encoder, the decoder's start and its step, as three graphs that any ONNX runtime can drive.

    encoder.onnx         images (B, S, S, 3) float32, 0..255 -> features (B, P, D)
    decoder_start.onnx   features -> state_0, state_1, ...
    decoder_step.onnx    state_0, ..., token (B,) int64 -> logits (B, V), next_state_0, ..., attention (B, P) if any

`captions.json` says the rest: input size, special tokens, longest caption; `vocabulary.json` the words. `describe`
below is all the code that a caption needs with them, and what the export is checked with before it is called done.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tarazu.captions.data.vocabulary import EOS, PAD, SOS, UNK, Vocabulary
from tarazu.captions.decoding import beam_search
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.captions.inference import trained_model
from tarazu.errors import TarazuError, UserError
from tarazu.storage.atomic_io import write_atomic, write_json

OPSET = 18


class _Start(nn.Module):
    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.decoder.start(features)


class _Step(nn.Module):
    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder

    def forward(self, token: torch.Tensor, *state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, state, alpha = self.decoder.step(state, token)
        return (logits, *state) if alpha is None else (logits, *state, alpha)


def export(run: str, target: Path, format: str = "") -> None:
    """`tarazu export`: the run as ONNX in `target`. Raises `UserError` for another format, or for an ensemble."""
    if format not in ("", "onnx"):
        raise UserError(
            f"a captioning model cannot be written as {format!r}", location="--format", hint="onnx"
        )
    model = trained_model.load(run, device="cpu")
    if not hasattr(model.model, "decoder"):
        raise UserError(
            "an ensemble is several models", location=run, hint="export its members one by one"
        )
    write_onnx(model.model, model.encoder, model.vocabulary, target)
    _check(model, target)


def write_onnx(model: nn.Module, encoder: Pretrained, vocabulary: Vocabulary, to: Path) -> None:
    """Writes the three graphs, the vocabulary and `captions.json`. Raises `TarazuError` without the onnx packages."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise TarazuError(
            "exporting needs the onnx packages", hint="pip install 'tarazu[onnx]'"
        ) from None
    to.mkdir(parents=True, exist_ok=True)
    model.eval().cpu()
    images = torch.rand(2, encoder.size, encoder.size, 3) * 255
    with torch.no_grad():
        features = model.encoder(images)
        state = model.decoder.start(features)
        logits, state, alpha = model.decoder.step(
            state, torch.tensor([SOS, SOS])
        )  # so that no dimension is empty
    names = [f"state_{i}" for i in range(len(state))]
    grown = ["next_" + name for name in names] + (["attention"] if alpha is not None else [])
    _write(model.encoder, (images,), to / "encoder.onnx", ["images"], ["features"])
    _write(_Start(model.decoder), (features,), to / "decoder_start.onnx", ["features"], names)
    _write(
        _Step(model.decoder),
        (torch.tensor([4, 5]), *state),
        to / "decoder_step.onnx",
        ["token", *names],
        ["logits", *grown],
        _growing(model, state),
    )
    write_atomic(to / "vocabulary.json", vocabulary.to_json().encode())
    about = {
        "encoder": encoder.summary(),
        "states": names,
        "attention": alpha is not None,
        "tokens": {"pad": PAD, "sos": SOS, "eos": EOS, "unk": UNK},
    }
    write_json(to / "captions.json", {**about, "max_length": vocabulary.max_length, "opset": OPSET})


def describe(folder: Path, pixels: np.ndarray) -> list[str]:
    """The greedy caption of one picture, uint8 (S, S, 3), by onnxruntime alone."""
    import onnxruntime

    about = json.loads((folder / "captions.json").read_text())
    words = json.loads((folder / "vocabulary.json").read_text())["words"]
    encoder, start, step = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder_start", "decoder_step")
    )
    features = encoder.run(None, {"images": pixels[None].astype(np.float32)})[0]
    state = start.run(None, {"features": features})
    token, said, banned = SOS, [], [PAD, SOS, UNK]
    for place in range(about["max_length"]):
        logits, *rest = step.run(
            None, {"token": np.array([token]), **dict(zip(about["states"], state, strict=True))}
        )
        logits[0, banned + ([EOS] if place == 0 else [])] = -np.inf
        state, token = rest[: len(state)], int(logits[0].argmax())
        if token == EOS:
            break
        said.append(words[token])
    return said


def _write(
    module: nn.Module,
    arguments: tuple,
    path: Path,
    inputs: list[str],
    outputs: list[str],
    growing: tuple[int, ...] = (),
) -> None:
    """One graph. Every input's first dimension, and the word count of a `growing` state, may be of any size."""
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    shapes = [{0: batch} | ({2: time} if i in growing else {}) for i in range(len(arguments))]
    dynamic = tuple(shapes) if not isinstance(module, _Step) else (shapes[0], tuple(shapes[1:]))
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(
        logging.ERROR
    )  # it misses torchvision, we do not
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            arguments,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
    program.save(str(path), external_data=False)


def _growing(model: nn.Module, state: tuple[torch.Tensor, ...]) -> tuple[int, ...]:
    """Which arguments of a step (0 is the token) grow by a word each time."""
    with torch.no_grad():
        after = model.decoder.step(state, torch.tensor([4, 5]))[1]
    return tuple(
        i + 1
        for i, (old, new) in enumerate(zip(state, after, strict=True))
        if old.shape != new.shape
    )


def _check(model: trained_model.LoadedCaptioner, folder: Path) -> None:
    """The runtime must say what the model says, or the export is worth nothing."""
    noise = np.random.default_rng(0).integers(
        0, 255, (model.encoder.size, model.encoder.size, 3), dtype=np.uint8
    )
    expected = model.vocabulary.decode(
        beam_search.greedy(model.model, model.tensor([noise]), model.vocabulary.max_length)[
            0
        ].token_ids
    )
    found = describe(folder, noise)
    if found != expected:
        raise TarazuError(
            f"ONNX says {' '.join(found)!r} where the model says {' '.join(expected)!r}",
            location=str(folder),
            hint="do not use this export; please report it",
        )
