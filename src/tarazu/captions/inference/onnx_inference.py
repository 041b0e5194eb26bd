"""Captions from an ONNX export, by onnxruntime alone: a pattern for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def caption(folder: Path, pixels: np.ndarray) -> list[str]:
    """Return the words of an image's greedy caption.

    Args:
        folder: what `onnx_export.write_onnx` wrote.
        pixels: uint8 (S, S, 3).
    """
    import onnxruntime  # an optional package

    description = json.loads((folder / "captions.json").read_text())
    vocabulary = json.loads((folder / "vocabulary.json").read_text())["words"]
    special = description["tokens"]
    encoder, start, step = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("encoder", "decoder_start", "decoder_step")
    )
    features = encoder.run(None, {"images": pixels[None].astype(np.float32)})[0]
    state = start.run(None, {"features": features})
    token, words = special["sos"], []
    for position in range(description["max_length"]):
        inputs = dict(zip(description["states"], state, strict=True))
        logits, *outputs = step.run(None, {"token": np.array([token]), **inputs})
        forbidden = [special["pad"], special["sos"], special["unk"]]
        if position == 0:
            forbidden.append(special["eos"])  # a caption is never empty
        logits[0, forbidden] = -np.inf
        state, token = outputs[: len(state)], int(logits[0].argmax())
        if token == special["eos"]:
            break
        words.append(vocabulary[token])
    return words
