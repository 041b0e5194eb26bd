"""A data set of the Hub (parquet with images) is written to disk and read like a folder."""

import io

import datasets
import pytest
from PIL import Image

from tarazu.captions.data import flickr8k, hub_dataset
from tarazu.errors import UserError


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(out, "PNG")
    return out.getvalue()


def parquet(folder, columns):
    folder.mkdir()
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(
        folder / "train-00000.parquet"
    )
    return str(folder)


@pytest.mark.parametrize("schema", ["columns", "list"])
def test_images_and_captions_of_both_usual_schemas(tmp_path, monkeypatch, schema):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    columns = {
        "image": [{"bytes": png("red"), "path": "a.jpg"}, {"bytes": png("blue"), "path": "b.jpg"}]
    }
    if schema == "columns":
        columns |= {f"caption_{i}": [f"red, {i}", f"blue, {i}"] for i in range(2)}
    else:
        columns |= {"captions": [["red, 0", "red, 1"], ["blue, 0", "blue, 1"]]}
    hub_dataset._download(parquet(tmp_path / "set", columns), tmp_path / "home")
    collection = flickr8k.read(tmp_path / "home")
    assert (
        collection.captions == {"a.jpg": ["red, 0", "red, 1"], "b.jpg": ["blue, 0", "blue, 1"]}
        and not collection.problems
    )
    assert collection.images.read("b.jpg") == png("blue")


def test_a_data_set_without_captions_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    name = parquet(
        tmp_path / "set", {"image": [{"bytes": png("red"), "path": "a.jpg"}], "label": [1]}
    )
    with pytest.raises(UserError, match="no columns image and caption"):
        hub_dataset._download(name, tmp_path / "home")


def test_hub_names_are_told_from_paths():
    assert hub_dataset.is_hub_name("jxie/flickr8k")
    assert not any(
        hub_dataset.is_hub_name(path)
        for path in ("./flickr8k", "/data/flickr8k", "flickr8k", "a/b/c", "../a")
    )
