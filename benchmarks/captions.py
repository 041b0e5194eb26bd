"""Captioning: image features, epochs of every decoder, a fine-tuned encoder, and beam search.

    python -m benchmarks.captions --source FOLDER      # Flickr8k, on a GPU: minutes
    python -m benchmarks.captions --scenes 60           # synthetic scenes, on a CPU

The peer is captioning as tutorials write it (`peers/plain_captions.py`), from the same weights and
the same rows, in the same process and in turns. The same run compares the features, the loss of the
first steps without any randomness, and the captions.
"""

from __future__ import annotations

from benchmarks import common  # first: its clock starts at its import

# isort: split

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

OURS, PEER = "tarazu", "plain loop"
FINE_TUNE = {"blocks": 8, "learning_rate": 1e-4, "from_epoch": 0}
# Settings without random numbers in training, so that losses can be compared.
DETERMINISTIC = {
    "dropout": 0.0,
    "feature_dropout": 0.0,
    "word_dropout": 0.0,
    "label_smoothing": 0.0,
    "doubly_stochastic": 0.0,
}
# What the peer does.
PEER_SETTINGS = ["data.num_augmentations=1", "length_penalty=1.0", "early_stopping=full"]
CHECKED_STEPS = 12  # enough that a GPU replays most of them from CUDA graphs
MAX_LOSS_DIFFERENCE = {"cpu": 1e-4, "cuda": 2e-2}  # nats; a GPU multiplies in TF32
MAX_FEATURE_DIFFERENCE = 2e-2  # relative; ours may be float16, the peer's TF32
MIN_EQUAL_CAPTIONS = 0.9  # fraction
PEER_WARM_STEPS, PEER_STEPS = 3, 12


class Bench:
    """A recipe's data and methods, and the records so far."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        import torch

        from tarazu.captions import prepare_data
        from tarazu.recipe import schema
        from tarazu.storage.run_folder import StudyDir

        # An empty cache: nothing that was computed before is used.
        os.environ["TARAZU_CACHE"] = str(folder / "cache")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_float32_matmul_precision("high" if self.device.type == "cuda" else "highest")
        overrides = [f"data.source={args.source}"]
        if args.scenes:
            overrides = [
                "data.source=synthetic",
                f"data.scenes={args.scenes}",
                "data.split={train: 0.8, validation: 0.1, test: 0.1}",
            ]
        if args.size:
            overrides.append(f"encoder.size={args.size}")
        overrides += [f"encoder.name={args.encoder}", *PEER_SETTINGS, *args.set]
        self.args = args
        self.recipe = schema.load(args.recipe, overrides)
        self.folder = StudyDir(folder / "run")
        self.data = prepare_data.prepare(self.recipe, self.folder, self.device)
        self.num_runs = 0
        self.records: list[dict[str, Any]] = []
        self.faults: list[str] = []

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a pass over the training rows."""
        return self.row_sampler().steps_per_epoch

    def row_sampler(self) -> Any:
        """The rows of each step, of seed 0."""
        from tarazu.engine.row_sampler import RowSampler

        return RowSampler(self.data.size("train"), self.recipe.budget.batch_rows, 0)

    def add_record(self, who: str, setting: str, group: str, **metrics: Any) -> None:
        """Keep a record, and write all so far. See `common.record`."""
        shape = f"{self.data.encoder.module.config.name}, {len(self.data.all_names)} images"
        self.records.append(common.record("captions", who, setting, shape, group, **metrics))
        common.write(self.args.out, self.records)

    def add_fault(self, text: str) -> None:
        """Print what is wrong. `main` fails with it after all measurements."""
        self.faults.append(text)
        print(f"FAULT: {text}", flush=True)

    def recipe_of(self, name: str, **changes: Any) -> Any:
        """The recipe with one method only, changed where it has such settings."""
        method = self.recipe.methods[name]
        method_class = type(method)
        settings = method.model_dump() | {
            key: value for key, value in changes.items() if key in method_class.model_fields
        }
        return self.recipe.model_copy(
            update={"methods": {name: method_class.model_validate(settings)}}
        )


def measure_features(bench: Bench) -> None:
    """Measure images per second from the files to the features, both from an empty cache."""
    import torch
    from benchmarks.peers import plain_captions

    from tarazu.captions.data.images import RESAMPLE
    from tarazu.captions.encoder import feature_cache

    data, encoder = bench.data, bench.data.encoder
    names = data.all_names[: bench.args.images]
    views = [feature_cache.ImageView(name) for name in names]
    features: dict[str, torch.Tensor] = {}  # of the first 64 images
    _warm_up_encoder(bench)

    def run_ours() -> None:
        with tempfile.TemporaryDirectory() as cache:
            previous, os.environ["TARAZU_CACHE"] = os.environ["TARAZU_CACHE"], cache
            store = feature_cache.load_features(
                encoder, data.collection.images, views, data.hashes, data.precision, bench.device
            )
            features[OURS] = torch.from_numpy(store.array[store.rows[:64]]).float()
            os.environ["TARAZU_CACHE"] = previous

    def run_peer() -> None:
        files = [data.collection.images.read(name) for name in names]
        images = plain_captions.ImageFiles(files, encoder.size, RESAMPLE[encoder.resample])
        features[PEER] = plain_captions.features(encoder.module, images, bench.device)[:64]

    seconds = common.alternate({OURS: run_ours, PEER: run_peer}, bench.args.repeats)
    difference = ((features[OURS] - features[PEER]).norm() / features[PEER].norm()).item()
    ratio = common.spread([p / o for o, p in zip(seconds[OURS], seconds[PEER], strict=True)])
    rates = {who: common.spread([len(names) / s for s in times]) for who, times in seconds.items()}
    bench.add_record(
        OURS,
        f"worker processes, {data.precision}",
        "features",
        images_per_second=rates[OURS],
        ratio=ratio,
        relative_difference=difference,
    )
    bench.add_record(PEER, "DataLoader, float32", "features", images_per_second=rates[PEER])
    print(
        f"features: {rates[OURS]['median']:,.0f} images/s, {ratio['median']:.2f} times the plain "
        f"loop's, relative difference {difference:.1e}",
        flush=True,
    )
    if difference > MAX_FEATURE_DIFFERENCE:
        bench.add_fault("the features differ")


def _warm_up_encoder(bench: Bench) -> None:
    """Run the encoder once in each precision: the first use of a library includes its setup."""
    import torch

    from tarazu.captions.encoder.feature_extraction import BATCH_SIZE

    encoder, device = bench.data.encoder, bench.device
    with torch.no_grad():
        for half in (False, device.type == "cuda"):
            with torch.autocast(device.type, torch.float16, enabled=half):
                shape = (BATCH_SIZE[device.type], encoder.size, encoder.size, 3)
                encoder.module.to(device)(torch.zeros(shape, device=device))


def train(bench: Bench, recipe: Any, steps: int) -> tuple[list[dict[str, Any]], Any]:
    """Train with tarazu's own loop, without validation.

    Args:
        bench: the data.
        recipe: has one method.
        steps: length of the training.

    Returns:
        The events of the steps, and the `TrainableCaptioner`.
    """
    import torch

    from tarazu.captions.task import Captions
    from tarazu.engine import trainer
    from tarazu.engine.ledger import Ledger
    from tarazu.engine.signals import StopSignals

    class CaptionsWithoutValidation(Captions):
        def validate(self, *_: Any) -> dict[str, float]:
            return {"loss": 0.0, recipe.budget.monitor: 0.0}

    task, seed = CaptionsWithoutValidation(), 0
    [(name, method)] = recipe.methods.items()
    changes = {
        "epochs": steps / bench.steps_per_epoch,
        "tokens": None,
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "keep": "last",
    }
    recipe = recipe.model_copy(update={"budget": recipe.budget.model_copy(update=changes)})
    model = task.build(recipe, name, bench.data, seed, bench.device)
    bench.num_runs += 1
    run = bench.folder.run(name, bench.num_runs)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with StopSignals(str(bench.folder.path)) as stop:
        ledger = Ledger(bench.device)
        trainer.train(
            task, model, bench.data, recipe, method, run, seed, ledger, stop, sampled=False
        )
    return [event for event in run.read_jsonl("events.jsonl") if event["event"] == "step"], model


def train_plainly(bench: Bench, recipe: Any, steps: int) -> tuple[list[float], list[float]]:
    """Train on the same rows with the plain loop.

    Args:
        bench: the data.
        recipe: has one method.
        steps: length of the training.

    Returns:
        Seconds and losses of the steps.
    """
    import torch
    from benchmarks.peers import plain_captions

    from tarazu.captions.task import Captions

    data = bench.data
    [(name, method)] = recipe.methods.items()
    plain = recipe.model_copy(update={"methods": {name: method.model_copy(update={"fast": False})}})
    model = Captions().build(plain, name, data, 0, bench.device)
    model.module.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.module.parameters() if p.requires_grad],
        lr=method.learning_rate,
        weight_decay=method.weight_decay,
    )
    sampler = bench.row_sampler()
    losses: list[float] = []
    seconds: list[float] = []
    for step in range(steps):
        rows = sampler.rows_of_step(step)

        def train_step(rows: list[int] = rows) -> None:
            tokens = torch.from_numpy(data.tokens["train"][rows]).to(bench.device)
            indices = torch.from_numpy(data.image_indices["train"][rows])
            if model.encoder_tuned:
                images = data.pixels.lookup(indices)
            else:
                images = data.feature_maps.lookup(indices).float()
            loss = plain_captions.train_step(
                model.module, optimizer, images, tokens, recipe.budget.max_grad_norm
            )
            losses.append(loss)

        seconds.append(common.timed(train_step))
    return seconds, losses


def max_loss_difference(bench: Bench, name: str) -> float:
    """Largest difference of a step's loss from the plain loop's, without randomness."""
    recipe = bench.recipe_of(name, **DETERMINISTIC, fine_tune=None)
    events, _ = train(bench, recipe, CHECKED_STEPS)
    _, peer_losses = train_plainly(bench, recipe, CHECKED_STEPS)
    losses = [event["loss"] for event in events]
    return max(abs(a - b) for a, b in zip(losses, peer_losses, strict=True))


def measure_training(bench: Bench, name: str, fine_tune: dict[str, Any] | None = None) -> Any:
    """Measure the seconds of an epoch, from steps after the first ones.

    Args:
        bench: the data.
        name: the method.
        fine_tune: settings of a fine-tuned encoder; None: it stays frozen.

    Returns:
        The trained `TrainableCaptioner`.
    """
    difference = max_loss_difference(bench, name)
    recipe = bench.recipe_of(name, fine_tune=fine_tune)
    group = name
    if fine_tune:
        group += f", {fine_tune['blocks']} blocks tuned in {fine_tune['precision']}"
    steps, warm = bench.args.steps, bench.args.warm
    events, model = train(bench, recipe, steps + warm)
    peak = common.peak_gib()
    seconds = [event["seconds"] for event in events][warm:]
    tokens = [
        after["tokens"] - before["tokens"]
        for before, after in zip(events[warm - 1 :], events[warm:], strict=False)
    ]
    peer_seconds, _ = train_plainly(bench, recipe, min(steps, PEER_STEPS) + PEER_WARM_STEPS)
    peer_seconds = peer_seconds[PEER_WARM_STEPS:]
    # An epoch is the mean measured step, times the steps of a pass.
    epoch, peer_epoch = (
        sum(times) / len(times) * bench.steps_per_epoch for times in (seconds, peer_seconds)
    )
    batch = f"{recipe.budget.batch_rows} rows a step"
    bench.add_record(
        OURS,
        f"{batch}; {model.code_path()}",
        group,
        tokens_per_second=common.spread([n / s for n, s in zip(tokens, seconds, strict=True)]),
        epoch_seconds=epoch,
        ratio={"median": peer_epoch / epoch},
        peak_gib=peak,
        largest_loss_difference=difference,
    )
    tokens_per_step = sum(tokens) / len(tokens)
    bench.add_record(
        PEER,
        f"{batch}, padded, autograd",
        group,
        epoch_seconds=peer_epoch,
        tokens_per_second=common.spread([tokens_per_step / s for s in peer_seconds]),
    )
    print(
        f"{group}: an epoch of {bench.steps_per_epoch} steps in {epoch:.2f} s, "
        f"{peer_epoch / epoch:.2f} times the plain loop's speed, losses within {difference:.1e}",
        flush=True,
    )
    if not difference < MAX_LOSS_DIFFERENCE[bench.device.type]:
        bench.add_fault(f"{name}: the losses differ from the plain loop's")
    return model


def measure_beam_search(bench: Bench, name: str, model: Any) -> None:
    """Measure images per second of beam 3 over the test split; the peer takes a few images.

    Args:
        bench: the data.
        name: the method.
        model: its `TrainableCaptioner`.
    """
    import torch
    from benchmarks.peers import plain_captions

    from tarazu.captions.evaluation.generation import generate_captions

    data = bench.data
    names = data.names["test"]
    subset = names[: bench.args.beam_images]
    captions: dict[str, dict[str, list[int]]] = {}  # token ids by contender and image
    model.module.eval()

    def run_ours() -> None:
        hypotheses = generate_captions(model, data, "test", bench.recipe, 3)
        captions[OURS] = {image: best.token_ids for image, best in hypotheses.items()}

    def run_peer() -> None:
        indices = torch.tensor([data.index_of[image] for image in subset])
        store = data.pooled_features if model.pooled else data.feature_maps
        features = store.lookup(indices).float()
        captions[PEER] = {
            image: plain_captions.beam_search(
                model.module, features[i : i + 1], 3, data.vocabulary.max_length
            )
            for i, image in enumerate(subset)
        }

    generate_captions(model, data, "test", bench.recipe, 3, names[:8])  # warm-up
    seconds = common.alternate({OURS: run_ours, PEER: run_peer}, bench.args.repeats)
    equal = [captions[OURS][image] == captions[PEER][image] for image in subset]
    equal_fraction = sum(equal) / len(equal)
    rates = {
        OURS: [len(names) / s for s in seconds[OURS]],
        PEER: [len(subset) / s for s in seconds[PEER]],
    }
    ratios = [ours / peer for ours, peer in zip(rates[OURS], rates[PEER], strict=True)]
    group = f"{name}, beam 3"
    bench.add_record(
        OURS,
        "beam 3, all together",
        group,
        images_per_second=common.spread(rates[OURS]),
        seconds=common.spread(seconds[OURS]),
        ratio=common.spread(ratios),
        equal_sentences=equal_fraction,
    )
    bench.add_record(
        PEER, "beam 3, one by one", group, images_per_second=common.spread(rates[PEER])
    )
    print(
        f"{name}: beam 3 over {len(names)} images in "
        f"{common.spread(seconds[OURS])['median']:.2f} s; {equal_fraction:.0%} of captions equal "
        "the plain search's",
        flush=True,
    )
    if equal_fraction < MIN_EQUAL_CAPTIONS:
        bench.add_fault(f"{name}: the captions differ")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--source", help="the folder with Flickr8k")
    source.add_argument("--scenes", type=int, help="number of synthetic scenes instead")
    add = parser.add_argument
    add("--recipe", default="recipes/flickr8k.yaml", help="the recipe with the methods")
    add("--only", default="features,epochs,tuned,beams", help="which measurements")
    add("--methods", nargs="*", default=["show_and_tell", "show_attend_tell", "transformer"])
    add("--encoder", default="efficientnet-lite0", help="name of the encoder")
    add("--size", type=int, help="side of the encoder's input, if not its own")
    add("--images", type=int, help="number of images for the features (default: all)")
    add("--steps", type=int, default=150, help="measured steps of each training")
    add(
        "--warm",
        type=int,
        default=60,
        help="warm-up steps, not measured; CUDA graphs are captured in them",
    )
    add(
        "--tuned-precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of a fine-tuned encoder on a GPU",
    )
    add("--beam-images", type=int, default=40, help="images of the plain beam search")
    add("--repeats", type=int, default=3, help="times that each contender runs")
    add("--set", nargs="*", default=[], help="changes of the recipe, as in `tarazu run`")
    add("--out", type=Path, default=common.RESULTS / "captions.json", help="the file to write")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        if "features" in args.only:
            measure_features(bench)
        for name in args.methods:
            # Beam search needs a trained model.
            if "epochs" in args.only or "beams" in args.only:
                model = measure_training(bench, name)
            if "beams" in args.only:
                measure_beam_search(bench, name, model)
        if "tuned" in args.only and "show_attend_tell" in args.methods:
            fine_tune = FINE_TUNE | {"precision": args.tuned_precision}
            measure_training(bench, "show_attend_tell", fine_tune)
        if bench.faults:
            raise SystemExit("; ".join(bench.faults))


if __name__ == "__main__":
    main()
