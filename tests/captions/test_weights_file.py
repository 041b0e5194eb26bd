"""Reading weights without running code from the file."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from tarazu.captions.encoder.weights_file import read_weights
from tarazu.errors import UserError

STATE = OrderedDict(
    a=torch.randn(3, 4),
    b=torch.arange(5),
    c=torch.randn(4, 6, dtype=torch.float64)[1:, ::2].T,
    d=torch.tensor(2.5),
    e=torch.randn(2, 2).half(),
)


def assert_equal_state(weights, state=STATE):
    assert weights.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(weights[name], tensor) and weights[name].dtype == tensor.dtype


@pytest.mark.parametrize("zip_format", [True, False])
def test_both_pth_formats_give_the_same_tensors(tmp_path, zip_format):
    path = tmp_path / "state.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zip_format)
    assert_equal_state(read_weights(path)[0])


def test_safetensors_and_the_hash(tmp_path):
    path = tmp_path / "state.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in STATE.items()}, path)
    weights, sha256 = read_weights(path)
    assert_equal_state(weights)
    assert len(sha256) == 64 and sha256 == read_weights(path)[1]


def test_a_modules_metadata_parameters_and_shared_storage(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = module.state_dict()  # has the attribute _metadata
    state["0.again"] = state["0.weight"]
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    torch.save(state, tmp_path / "state.pth")
    weights = read_weights(tmp_path / "state.pth")[0]
    assert_equal_state(weights, state)
    assert not any(tensor.requires_grad for tensor in weights.values())


class Payload:
    """A pickle of it runs a shell command when it is read carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("pth_format", ["zip", "legacy", "bare pickle"])
def test_a_payload_does_not_run(tmp_path, pth_format):
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    if pth_format == "bare pickle":
        path.write_bytes(pickle.dumps(Payload(mark)))
    else:
        zip_format = pth_format == "zip"
        torch.save({"weight": Payload(mark)}, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(UserError, match="not a plain state dict") as raised:
        read_weights(path)
    assert raised.value.location == str(path) and "safetensors" in raised.value.hint
    assert not mark.exists()


@pytest.mark.parametrize("zip_format", [True, False])
def test_truncated_files_are_refused(tmp_path, zip_format):
    torch.save(STATE, tmp_path / "full.pth", _use_new_zipfile_serialization=zip_format)
    data = (tmp_path / "full.pth").read_bytes()
    for length in range(0, len(data), 97):
        (tmp_path / "short.pth").write_bytes(data[:length])
        with pytest.raises(UserError, match="not a plain state dict"):
            read_weights(tmp_path / "short.pth")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    """A tensor of ten numbers over a storage of five would read other memory."""
    torch.save({"a": torch.arange(5, dtype=torch.float32)}, tmp_path / "good.pth")
    evil = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(evil, "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            if name.endswith("data.pkl"):
                # The second 5 is the shape (5,); the first is the storage's length.
                at = data.rindex(b"K\x05")
                data = data[:at] + b"K\x0a" + data[at + 2 :]
            bad.writestr(name, data)
    (tmp_path / "evil.pth").write_bytes(evil.getvalue())
    with pytest.raises(UserError, match="not a plain state dict"):
        read_weights(tmp_path / "evil.pth")


@pytest.mark.parametrize("value", [{"epoch": 3}, [torch.zeros(2)], torch.zeros(2), {1: STATE["a"]}])
def test_anything_but_tensors_by_name_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a dictionary of tensors"):
        read_weights(tmp_path / "other.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "absent.pth")
