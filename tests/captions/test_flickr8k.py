"""Reading the three layouts, dropped images, splits, duplicates and synthetic scenes."""

import csv
import gzip
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from tarazu.captions.data import duplicates, flickr8k, synthetic_scenes
from tarazu.captions.data.image_store import ImageStore
from tarazu.captions.data.split import split_by_fractions, split_images, subsample
from tarazu.captions.settings import DataSettings, SplitFractions
from tarazu.errors import UserError

NAMES = [f"{i}.jpg" for i in range(10)]


def save_image(folder, name, seed):
    """Save a random image under a name."""
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(values).resize((160, 160), Image.Resampling.BICUBIC).save(
        folder / name, quality=90
    )


def official(tmp_path, gz=True, zipped=True):
    """Write a small data set in the official layout."""
    for i, name in enumerate(NAMES):
        save_image(tmp_path / "images", name, i)
    lines = "".join(
        f"{name}#{n}\tA thing number {n} , here .\n"
        for name in [*NAMES, "ghost.jpg"]
        for n in range(5)
    )
    (tmp_path / "Flickr8k.token.txt").write_text(lines)
    if gz:
        (tmp_path / "Flickr8k.token.txt.gz").write_bytes(gzip.compress(lines.encode()))
        (tmp_path / "Flickr8k.token.txt").unlink()
    if zipped:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for path in sorted((tmp_path / "images").iterdir()):
                archive.write(path, f"Images/{path.name}")
                path.unlink()
    for split, part in (("train", NAMES[:6]), ("dev", NAMES[6:7]), ("test", NAMES[7:9])):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(part))
    return tmp_path


def reasons(collection):
    return {problem["reason"].split(" (")[0]: problem["names"] for problem in collection.problems}


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_official_layout(tmp_path, gz, zipped):
    collection = flickr8k.read(official(tmp_path, gz, zipped))
    assert collection.layout == "official" and sorted(collection.captions) == NAMES
    assert all(len(texts) == 5 for texts in collection.captions.values())
    assert reasons(collection) == {"captions without an image file": ["ghost.jpg"]}
    parts = split_images(collection, [], DataSettings(split="official"))
    assert {split: len(images) for split, images in parts.items()} == {
        "train": 6,
        "validation": 1,
        "test": 2,
    }
    assert reasons(collection)["images in no split list"] == ["9.jpg"]


@pytest.mark.parametrize(
    "split, count", [("official", 7), (SplitFractions(), 6)]
)  # two of each list at least
def test_a_subsample_is_chosen_before_any_image_is_read(tmp_path, monkeypatch, split, count):
    collection = flickr8k.read(official(tmp_path))
    settings, read = DataSettings(source=str(tmp_path), split=split, images=6), []
    monkeypatch.setattr(ImageStore, "read", lambda store, name: read.append(name))
    subsample(collection, settings)
    assert len(collection.captions) == count and not read
    again = flickr8k.read(tmp_path)
    subsample(again, settings)
    assert again.captions.keys() == collection.captions.keys()
    parts = split_images(collection, [], settings)
    assert sum(map(len, parts.values())) == count and all(parts.values())
    if split == "official":
        assert parts == {"train": NAMES[:4], "validation": NAMES[6:7], "test": NAMES[7:9]}
        assert "in a split list, but without image or captions" not in reasons(collection)


def test_kaggles_layout_keeps_commas(tmp_path):
    for i, name in enumerate(NAMES[:3]):
        save_image(tmp_path / "Images", name, i)
    with open(tmp_path / "captions.txt", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        rows.writerows([name, "A dog , a cat , and a man ."] for name in NAMES[:2])
    with open(tmp_path / "captions.txt", "a") as file:
        file.write("2.jpg,unquoted , commas stay\n2.jpg,\n")
    collection = flickr8k.read(tmp_path)
    assert collection.layout == "kaggle" and collection.captions["0.jpg"] == [
        "A dog , a cat , and a man ."
    ]
    assert collection.captions["2.jpg"] == ["unquoted , commas stay"] and reasons(collection)[
        "empty captions"
    ] == ["2.jpg"]


def test_karpathys_layout(tmp_path):
    images = []
    for i, (name, split) in enumerate(
        zip(NAMES[:4], ["train", "restval", "val", "test"], strict=True)
    ):
        save_image(tmp_path / "Images", name, i)
        images.append({"filename": name, "split": split, "sentences": [{"raw": f"A thing {i}."}]})
    (tmp_path / "dataset_flickr8k.json").write_text(
        json.dumps({"images": images, "dataset": "flickr8k"})
    )
    collection = flickr8k.read(tmp_path)
    parts = split_images(collection, [], DataSettings(source=str(tmp_path), split="karpathy"))
    assert parts == {"train": ["0.jpg", "1.jpg"], "validation": ["2.jpg"], "test": ["3.jpg"]}
    with pytest.raises(UserError, match="official split lists"):
        split_images(collection, [], DataSettings(source=str(tmp_path), split="official"))


def test_duplicates_are_never_in_two_splits(tmp_path):
    folder = tmp_path / "Images"
    for i, name in enumerate(NAMES):
        save_image(folder, name, i)
    (folder / "exact.jpg").write_bytes((folder / "3.jpg").read_bytes())
    Image.open(folder / "4.jpg").resize((150, 120)).save(folder / "near.jpg", quality=60)
    store = ImageStore.scan(tmp_path)
    hashes = duplicates.hash_images(store, store.names(), tmp_path)
    pairs = duplicates.find_duplicates(hashes, DataSettings().max_hash_distance)
    assert sorted((pair["a"], pair["b"], pair["kind"]) for pair in pairs) == [
        ("3.jpg", "exact.jpg", "exact"),
        ("4.jpg", "near.jpg", "near"),
    ]
    for seed in range(20):
        parts = split_by_fractions(
            duplicates.connected_components(store.names(), pairs),
            SplitFractions(train=0.5, validation=0.25, test=0.25),
            seed,
        )
        assert sorted(sum(parts.values(), [])) == store.names()
        for pair in pairs:
            assert sum({pair["a"], pair["b"]} <= set(images) for images in parts.values()) == 1
    assert parts == split_by_fractions(
        duplicates.connected_components(store.names(), pairs),
        SplitFractions(train=0.5, validation=0.25, test=0.25),
        19,
    )


def test_published_lists_stay_but_train_loses_its_duplicates_of_test(tmp_path):
    collection = flickr8k.read(official(tmp_path))
    parts = split_images(
        collection, [{"a": "0.jpg", "b": "8.jpg", "kind": "near"}], DataSettings(split="official")
    )
    assert parts["test"] == ["7.jpg", "8.jpg"] and "0.jpg" not in parts["train"]
    assert reasons(collection)["train images that are copies of validation or test images"] == [
        "0.jpg"
    ]


def test_unreadable_images_are_named(tmp_path):
    for i, name in enumerate(NAMES[:3]):
        save_image(tmp_path, name, i)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:200])
    store = ImageStore.scan(tmp_path)
    hashes = duplicates.hash_images(store, store.names(), tmp_path / "cache")
    assert list(hashes.unreadable) == ["1.jpg"] and sorted(hashes.sha256) == ["0.jpg", "2.jpg"]
    save_image(tmp_path, "1.jpg", 1)  # repaired: the cache must not remember
    assert not duplicates.hash_images(store, store.names(), tmp_path / "cache").unreadable


def test_hostile_members_of_zips_are_refused(tmp_path):
    save_image(tmp_path, "good.jpg", 0)
    data = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "good.jpg").unlink()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Images/good.jpg", data)
        archive.writestr("../../evil.jpg", data)
        archive.writestr("bomb.jpg", b"\0" * 50_000_000)
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    store = ImageStore.scan(tmp_path)
    assert store.names() == ["good.jpg"] and store.read("good.jpg") == data
    assert set(store.refused) == {"../../evil.jpg", "bomb.jpg", "link.jpg"}
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(UserError, match="not a zip"):
        ImageStore.scan(tmp_path)


@pytest.mark.parametrize(
    "name, text",
    [
        ("Flickr8k.token.txt", "a.jpg#0\tok\nno tab here\n"),
        ("captions.txt", "a,b\n1,2\n"),
        ("dataset_flickr8k.json", "[]"),
        ("captions.txt", ""),
    ],
)
def test_malformed_caption_files_are_refused(tmp_path, name, text):
    save_image(tmp_path / "Images", "a.jpg", 0)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError):
        flickr8k.read(tmp_path)


def test_a_missing_folder_and_missing_captions(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        flickr8k.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no captions"):
        flickr8k.read(tmp_path)


def test_a_shape_group_is_described_with_the_right_article():
    collection = [
        synthetic_scenes.ShapeGroup(count, "big", "orange", "star").words(sized)
        for count, sized in ((1, False), (1, True), (2, False))
    ]
    assert collection == ["an orange star", "a big orange star", "two orange stars"]


def test_the_same_seed_draws_the_same_scenes(tmp_path):
    first, second, other = (
        synthetic_scenes.write(tmp_path / str(i), 12, seed) for i, seed in enumerate((0, 0, 1))
    )
    texts = [(folder / "captions.txt").read_text() for folder in (first, second, other)]
    assert texts[0] == texts[1] != texts[2]
    collection = flickr8k.read(first)
    assert len(collection.captions) == 12 and all(
        len(set(lines)) == 5 for lines in collection.captions.values()
    )
    same = [(folder / "Images" / "scene_0_0003.png").read_bytes() for folder in (first, second)]
    assert same[0] == same[1]
