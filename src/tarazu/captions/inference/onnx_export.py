"""ONNX export: the encoder, the decoder's start and its step, as three graphs.

    encoder.onnx         images (B, S, S, 3) float32, 0..255 -> features (B, P, D)
    decoder_start.onnx   features -> state_0, state_1, ...
    decoder_step.onnx    state_0, ..., token (B,) int64
                         -> logits (B, V), next_state_0, ..., attention (B, P) if there is any

`captions.json` has the input size, the special tokens and the longest caption, `vocabulary.json`
the words. `onnx_inference.py` captions an image with them; the export is checked with it.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tarazu.captions.data.vocabulary import EOS, PAD, SOS, UNK, Vocabulary
from tarazu.captions.decoding import beam_search
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.captions.inference import onnx_inference, trained_model
from tarazu.captions.inference.trained_model import LoadedCaptioner
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.model.decoders import Decoder, State
from tarazu.errors import TarazuError, UserError
from tarazu.storage.atomic_io import write_atomic, write_json

OPSET = 18


class _Start(nn.Module):
    """`Decoder.start` as a forward pass."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, features: Tensor) -> State:
        """Return the state of features (B, P, D)."""
        return self.decoder.start(features)


class _Step(nn.Module):
    """`Decoder.step` as a forward pass with a flat list of tensors."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, token: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return logits (B, V), the new state and the attention weights of token (B,)."""
        logits, state, alpha = self.decoder.step(state, token)
        return (logits, *state) if alpha is None else (logits, *state, alpha)


def export_run(run_path: str, target: Path, export_format: str = "") -> None:
    """Write a finished run as ONNX and check it.

    Args:
        run_path: DIR/METHOD.
        target: the folder.
        export_format: "onnx" or empty.

    Raises:
        UserError: the format is another one, or the run is an ensemble or not finished.
        TarazuError: the ONNX packages are missing, or ONNX gives another caption.
    """
    if export_format not in ("", "onnx"):
        raise UserError(
            f"a captioning model cannot be exported as {export_format!r}",
            location="--format",
            hint="onnx",
        )
    captioner = trained_model.load(run_path, device="cpu")
    if not isinstance(captioner.model, ImageCaptioningModel):
        raise UserError(
            "an ensemble is several models",
            location=run_path,
            hint="export its members one by one",
        )
    write_onnx(captioner.model, captioner.encoder, captioner.vocabulary, target)
    _check(captioner, target)


def write_onnx(
    model: ImageCaptioningModel, encoder: Pretrained, vocabulary: Vocabulary, target: Path
) -> None:
    """Write the three graphs, vocabulary.json and captions.json.

    Args:
        model: the model; it is moved to the CPU and into eval mode.
        encoder: the pretrained encoder; it defines the preprocessing.
        vocabulary: the vocabulary.
        target: the folder.

    Raises:
        TarazuError: the ONNX packages are missing.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise TarazuError("exporting needs the onnx packages", hint="pip install 'tarazu[onnx]'")
    target.mkdir(parents=True, exist_ok=True)
    model.eval().cpu()
    # Example inputs. The state is one step old, so that no dimension of it is empty.
    images = torch.rand(2, encoder.size, encoder.size, 3) * 255
    with torch.no_grad():
        features = model.encoder(images)
        state = model.decoder.start(features)
        _, state, alpha = model.decoder.step(state, torch.tensor([SOS, SOS]))
    state_names = [f"state_{i}" for i in range(len(state))]
    step_outputs = ["logits", *(f"next_{name}" for name in state_names)]
    if alpha is not None:
        step_outputs.append("attention")

    _write_graph(model.encoder, (images,), target / "encoder.onnx", ["images"], ["features"])
    _write_graph(
        _Start(model.decoder), (features,), target / "decoder_start.onnx", ["features"], state_names
    )
    _write_graph(
        _Step(model.decoder),
        (torch.tensor([4, 5]), *state),
        target / "decoder_step.onnx",
        ["token", *state_names],
        step_outputs,
        _growing_arguments(model.decoder, state),
    )
    write_atomic(target / "vocabulary.json", vocabulary.to_json().encode())
    description = {
        "encoder": encoder.summary(),
        "states": state_names,
        "attention": alpha is not None,
        "tokens": {"pad": PAD, "sos": SOS, "eos": EOS, "unk": UNK},
        "max_length": vocabulary.max_length,
        "opset": OPSET,
    }
    write_json(target / "captions.json", description)


def _write_graph(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    input_names: list[str],
    output_names: list[str],
    growing: tuple[int, ...] = (),
) -> None:
    """Write one graph.

    Args:
        module: what is exported.
        inputs: example inputs; their first dimension may have any size.
        path: the file.
        input_names: names of the inputs.
        output_names: names of the outputs.
        growing: indices of inputs (B, layers, t, W) whose third dimension may have any size.
    """
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    shapes = [{0: batch} | ({2: time} if i in growing else {}) for i in range(len(inputs))]
    # `_Step.forward` takes the state as *args, whose shapes are one tuple.
    is_step = isinstance(module, _Step)
    dynamic_shapes = (shapes[0], tuple(shapes[1:])) if is_step else tuple(shapes)
    # The exporter warns that torchvision is missing, which is not needed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            inputs,
            input_names=input_names,
            output_names=output_names,
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            verbose=False,
        )
    program.save(str(path), external_data=False)


def _growing_arguments(decoder: Decoder, state: State) -> tuple[int, ...]:
    """Indices of the step's arguments (0 is the token) that grow by one token a step."""
    with torch.no_grad():
        next_state = decoder.step(state, torch.tensor([4, 5]))[1]
    pairs = zip(state, next_state, strict=True)
    return tuple(i for i, (old, new) in enumerate(pairs, 1) if old.shape != new.shape)


def _check(captioner: LoadedCaptioner, folder: Path) -> None:
    """Raise `TarazuError` unless ONNX captions a random image as the model does."""
    side = captioner.encoder.size
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    hypotheses = beam_search.greedy(
        captioner.model, captioner.tensor([noise]), captioner.vocabulary.max_length
    )
    expected = captioner.vocabulary.decode(hypotheses[0].token_ids)
    words = onnx_inference.caption(folder, noise)
    if words != expected:
        raise TarazuError(
            f"ONNX gives {' '.join(words)!r} where the model gives {' '.join(expected)!r}",
            location=str(folder),
            hint="do not use this export; please report it",
        )
