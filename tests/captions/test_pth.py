"""Reading .pth files without running them."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from tarazu.captions.encoder.torch_checkpoint import load_state_dict_file
from tarazu.errors import UserError

STATE = OrderedDict(
    a=torch.randn(3, 4),
    b=torch.arange(5),
    c=torch.randn(4, 6, dtype=torch.float64)[1:, ::2].T,
    d=torch.tensor(2.5),
    e=torch.randn(2, 2).half(),
)


def equal(found):
    return found.keys() == STATE.keys() and all(
        torch.equal(found[name], STATE[name]) and found[name].dtype == STATE[name].dtype
        for name in STATE
    )


@pytest.mark.parametrize("new", [True, False])
def test_both_forms_give_the_same_tensors(tmp_path, new):
    torch.save(STATE, tmp_path / "state.pth", _use_new_zipfile_serialization=new)
    assert equal(load_state_dict_file(tmp_path / "state.pth"))


def test_modules_metadata_and_shared_storage(tmp_path):
    state = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    ).state_dict()  # has _metadata
    state["0.again"] = state["0.weight"]
    torch.save(state, tmp_path / "state.pth")
    found = load_state_dict_file(tmp_path / "state.pth")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "flat", "bare"])
def test_a_payload_never_runs(tmp_path, form):
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    if form == "bare":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"weight": Bomb(mark)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="not a plain state dict"):
        load_state_dict_file(path)
    assert not mark.exists()


def test_damaged_files_are_refused(tmp_path):
    torch.save(STATE, tmp_path / "flat.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "flat.pth").read_bytes()
    for cut in range(0, len(whole), 97):
        (tmp_path / "cut.pth").write_bytes(whole[:cut])
        with pytest.raises(UserError):
            load_state_dict_file(tmp_path / "cut.pth")


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    """A tensor of ten numbers over a storage of five would read other memory."""
    torch.save({"a": torch.arange(5, dtype=torch.float32)}, tmp_path / "good.pth")
    evil = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(evil, "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            if name.endswith(
                "data.pkl"
            ):  # the shape (5,): the second 5 in the file, after the storage's length
                at = data.rindex(b"K\x05")
                data = data[:at] + b"K\x0a" + data[at + 2 :]
            bad.writestr(name, data)
    (tmp_path / "evil.pth").write_bytes(evil.getvalue())
    with pytest.raises(UserError, match="beyond its storage"):
        load_state_dict_file(tmp_path / "evil.pth")


def test_other_things_than_tensors(tmp_path):
    for value in ({"epoch": 3}, [torch.zeros(2)], torch.zeros(2)):
        torch.save(value, tmp_path / "other.pth")
        with pytest.raises(UserError):
            load_state_dict_file(tmp_path / "other.pth")
