"""ONNX gives the model's captions, for every kind of decoder and other batch sizes than traced."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_decoders import KINDS

from tarazu.captions.data.vocabulary import SPECIALS, Vocabulary
from tarazu.captions.decoding.beam_search import greedy
from tarazu.captions.encoder.efficientnet import ENCODER_CONFIGS, STAGES, EfficientNet
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.captions.inference import onnx_inference
from tarazu.captions.inference.onnx_export import write_onnx
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.model.decoders import make_decoder

# One stage only: tracing all sixteen blocks takes a minute.
CONFIG = replace(ENCODER_CONFIGS["efficientnet-lite0"], stages=STAGES[:1])


@pytest.mark.parametrize("kind", ["both", "show_attend_tell", "sinusoidal"])
def test_onnxruntime_gives_the_same_caption(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    module = EfficientNet(CONFIG, (127.0,) * 3, (128.0,) * 3)
    encoder = Pretrained(module, "random", "0" * 64, 32, "bicubic", "for a test")
    vocabulary = Vocabulary(SPECIALS + tuple("abcdefg"), 1, 6)
    decoder = make_decoder(KINDS[kind], len(vocabulary), module.width, 16 * 16)
    model = ImageCaptioningModel(module, decoder).eval()
    write_onnx(model, encoder, vocabulary, tmp_path)
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        assert onnx_inference.caption(tmp_path, pixels) == vocabulary.decode(
            greedy(model, torch.from_numpy(pixels)[None], 6)[0].token_ids
        )
    session = onnxruntime.InferenceSession(
        tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"]
    )
    images = np.random.default_rng(9).random((5, 32, 32, 3), dtype=np.float32) * 255
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {"images": images})[0],
            model.encode_images(torch.from_numpy(images)).numpy(),
            atol=1e-4,
            rtol=1e-3,
        )
