"""Captioning: features of pictures, an epoch of every decoder, an epoch with a tuned encoder, and beam search.

    python -m benchmarks.captions --source FOLDER      # Flickr8k, on a GPU: minutes
    python -m benchmarks.captions --drawn 60           # the project's own scenes, on a CPU

The peer is captioning as tutorials write it (`peers/plain_captions.py`), from the same weights and the same rows, in the same
process and in turns. Checked in the same run: the features, the loss of the first steps with all that is random switched
off, and the sentences.
"""

from __future__ import annotations

from benchmarks import common  # first: its clock starts at its import

# isort: split

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

TUNED = {"blocks": 8, "learning_rate": 1e-4, "from_epoch": 0}
STILL = {
    "dropout": 0.0,
    "feature_dropout": 0.0,
    "word_dropout": 0.0,
    "label_smoothing": 0.0,
    "doubly_stochastic": 0.0,
}  # nothing is drawn by lot
CHECKED = 12  # steps of the check: enough that a GPU plays most of them back from recordings
CLOSE = {"cpu": 1e-4, "cuda": 2e-2}  # nats in the first steps; a GPU multiplies in TF32


class Bench:
    """A recipe's data and methods, and where the records go."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        import torch

        from tarazu.captions import prepare_data
        from tarazu.recipe import schema
        from tarazu.storage.run_folder import StudyDir

        os.environ["TARAZU_CACHE"] = str(
            folder / "cache"
        )  # empty: nothing is measured that was done before
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_float32_matmul_precision("high" if self.device.type == "cuda" else "highest")
        source = [
            "data.source=synthetic",
            f"data.scenes={args.drawn}",
            "data.split={train: 0.8, validation: 0.1, test: 0.1}",
        ]
        source = source if args.drawn else [f"data.source={args.source}"]
        size = [f"encoder.size={args.size}"] if args.size else []
        plain = [
            "data.num_augmentations=1",
            "length_penalty=1.0",
            "early_stopping=full",
        ]  # what the peer does
        self.recipe = schema.load(
            args.recipe, [*source, *size, f"encoder.name={args.encoder}", *plain, *args.set]
        )
        self.folder, self.args, self.out, self.faults = StudyDir(folder / "run"), args, [], []
        self.data = prepare_data.prepare(self.recipe, self.folder, self.device)
        self.turn = 0

    def tell(self, who: str, setting: str, group: str, **figures: Any) -> dict:
        """Keeps a record, and writes all so far."""
        shape = f"{self.data.encoder.module.config.name}, {len(self.data.all_names)} images"
        self.out.append(common.record("captions", who, setting, shape, group, **figures))
        common.write(self.args.out, self.out)
        return self.out[-1]

    def fault(self, text: str) -> None:
        """What is wrong is told at once, and ends the program badly once all is measured."""
        self.faults.append(text)
        print(f"FAULT: {text}", flush=True)

    def method(self, name: str, **changes: Any) -> Any:
        """The recipe with one method, changed."""
        sort = type(self.recipe.methods[name])
        settings = self.recipe.methods[name].model_dump() | {
            key: value for key, value in changes.items() if key in sort.model_fields
        }
        return self.recipe.model_copy(update={"methods": {name: sort.model_validate(settings)}})


def measure_features(bench: Bench) -> None:
    """Images per second from their files to the cache's rows, both from an empty cache."""
    import torch
    from benchmarks.peers import plain_captions

    from tarazu.captions.data.images import RESAMPLE
    from tarazu.captions.encoder import feature_cache
    from tarazu.captions.encoder.feature_extraction import BATCH_SIZE

    data, encoder, found = bench.data, bench.data.encoder, {}
    names = data.all_names[: bench.args.images]
    items = [feature_cache.ImageView(name) for name in names]
    with torch.no_grad():  # the first use of a library is not its speed
        for half in (False, bench.device.type == "cuda"):
            with torch.autocast(bench.device.type, torch.float16, enabled=half):
                count = BATCH_SIZE[bench.device.type]
                encoder.module.to(bench.device)(
                    torch.zeros(count, encoder.size, encoder.size, 3, device=bench.device)
                )

    def ours() -> None:
        with tempfile.TemporaryDirectory() as cache:
            before, os.environ["TARAZU_CACHE"] = os.environ["TARAZU_CACHE"], cache
            bank = feature_cache.load_features(
                encoder, data.collection.images, items, data.hashes, data.precision, bench.device
            )
            found["ours"] = torch.from_numpy(bank.array[bank.rows[:64]]).float()
            os.environ["TARAZU_CACHE"] = before

    def theirs() -> None:
        files = [data.collection.images.read(name) for name in names]
        pictures = plain_captions.Pictures(files, encoder.size, RESAMPLE[encoder.resample])
        found["theirs"] = plain_captions.features(encoder.module, pictures, bench.device)[:64]

    seconds = common.alternate({"tarazu": ours, "plain loop": theirs}, bench.args.repeats)
    apart = (
        (found["ours"] - found["theirs"]).norm() / found["theirs"].norm()
    ).item()  # ours in float16, theirs in TF32
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    rate = {who: common.spread([len(names) / s for s in times]) for who, times in seconds.items()}
    bench.tell(
        "tarazu",
        f"worker processes, {data.precision}",
        "features",
        images_per_second=rate["tarazu"],
        ratio=common.spread(ratios),
        apart=apart,
    )
    bench.tell(
        "plain loop", "DataLoader, float32", "features", images_per_second=rate["plain loop"]
    )
    print(
        f"features: {rate['tarazu']['median']:,.0f} images/s, {common.spread(ratios)['median']:.2f} times the plain loop's, apart {apart:.1e}",
        flush=True,
    )
    if apart > 2e-2:
        bench.fault("the features differ")


def train(bench: Bench, recipe: Any, steps: int) -> tuple[list[dict], Any]:
    """Steps by tarazu's own loop: their events, and what was trained."""
    import torch

    from tarazu.captions.task import Captions
    from tarazu.engine import trainer
    from tarazu.engine.ledger import Ledger
    from tarazu.engine.row_sampler import RowSampler
    from tarazu.engine.signals import StopSignals

    class Unjudged(Captions):
        def validate(self, *_: Any) -> dict[str, float]:
            return {"loss": 0.0, recipe.budget.monitor: 0.0}

    (name, method), task, seed = *recipe.methods.items(), Unjudged(), 0
    a_pass = RowSampler(bench.data.size("train"), recipe.budget.batch_rows, seed).steps_per_epoch
    budget = recipe.budget.model_copy(
        update={
            "epochs": steps / a_pass,
            "tokens": None,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "keep": "last",
        }
    )
    recipe, bench.turn = recipe.model_copy(update={"budget": budget}), bench.turn + 1
    model, run = (
        task.build(recipe, name, bench.data, seed, bench.device),
        bench.folder.run(name, bench.turn),
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with StopSignals(str(bench.folder.path)) as stop:
        trainer.train(
            task,
            model,
            bench.data,
            recipe,
            method,
            run,
            seed,
            Ledger(bench.device),
            stop,
            sampled=False,
        )
    return [event for event in run.read_jsonl("events.jsonl") if event["event"] == "step"], model


def train_plainly(bench: Bench, recipe: Any, steps: int) -> tuple[list[float], list[float]]:
    """The same rows by the plain loop: seconds and losses of the steps."""
    import torch
    from benchmarks.peers import plain_captions

    from tarazu.captions.task import Captions
    from tarazu.engine.row_sampler import RowSampler

    (name, method), data, seed = *recipe.methods.items(), bench.data, 0
    plain = recipe.model_copy(update={"methods": {name: method.model_copy(update={"fast": False})}})
    model = Captions().build(plain, name, data, seed, bench.device)
    model.module.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.module.parameters() if p.requires_grad],
        lr=method.learning_rate,
        weight_decay=method.weight_decay,
    )
    order, losses, seconds = RowSampler(data.size("train"), recipe.budget.batch_rows, seed), [], []
    for step in range(steps):
        rows = order.rows_of_step(step)

        def one(rows: list[int] = rows) -> None:
            tokens = torch.from_numpy(data.tokens["train"][rows]).to(bench.device)
            places = torch.from_numpy(data.image_indices["train"][rows])
            pictures = (data.pixels if model.encoder_tuned else data.feature_maps).lookup(places)
            pictures = pictures if model.encoder_tuned else pictures.float()
            losses.append(
                plain_captions.train_step(
                    model.module, optimizer, pictures, tokens, recipe.budget.max_grad_norm
                )
            )

        seconds.append(common.timed(one))
    return seconds, losses


def measure_training(bench: Bench, name: str, fine_tune: dict | None = None) -> Any:
    """Seconds of an epoch, from steps after the first ones; returns what was trained."""
    from tarazu.engine.row_sampler import RowSampler

    still = bench.method(name, **STILL, fine_tune=None)
    own, (_, theirs) = (
        [e["loss"] for e in train(bench, still, CHECKED)[0]],
        train_plainly(bench, still, CHECKED),
    )
    apart = max(abs(a - b) for a, b in zip(own, theirs, strict=True))
    recipe, group = (
        bench.method(name, fine_tune=fine_tune),
        name + (f", 8 blocks tuned in {fine_tune['precision']}" if fine_tune else ""),
    )
    steps, warm = bench.args.steps, bench.args.warm
    events, model = train(bench, recipe, steps + warm)
    peak, a_pass = (
        common.peak_gib(),
        RowSampler(bench.data.size("train"), recipe.budget.batch_rows, 0).steps_per_epoch,
    )
    seconds = [e["seconds"] for e in events][warm:]
    counted = [
        after["tokens"] - before["tokens"]
        for before, after in zip(events[warm - 1 :], events[warm:], strict=False)
    ]
    peer, _ = train_plainly(bench, recipe, min(steps, 12) + 3)
    epoch, theirs = (sum(times) / len(times) * a_pass for times in (seconds, peer[3:]))
    rates = common.spread([count / s for count, s in zip(counted, seconds, strict=True)])
    setting = f"{recipe.budget.batch_rows} rows a step; {model.code_path()}"
    bench.tell(
        "tarazu",
        setting,
        group,
        tokens_per_second=rates,
        epoch_seconds=epoch,
        ratio={"median": theirs / epoch},
        peak_gib=peak,
        largest_loss_difference=apart,
    )
    bench.tell("plain loop", f"{recipe.budget.batch_rows} rows a step, padded, autograd", group, epoch_seconds=theirs,
               tokens_per_second=common.spread([sum(counted) / len(counted) / s for s in peer[3:]]))  # fmt: skip
    print(
        f"{group}: an epoch of {a_pass} steps in {epoch:.2f} s, {theirs / epoch:.2f} times the plain loop's speed, losses within {apart:.1e}",
        flush=True,
    )
    if not apart < CLOSE[bench.device.type]:
        bench.fault(f"{name}: the losses differ from the plain loop's")
    return model


def measure_beams(bench: Bench, name: str, model: Any) -> None:
    """Images per second of beam 3 over the test split; the peer writes for a few pictures."""
    from benchmarks.peers import plain_captions

    from tarazu.captions.evaluation.generation import generate_captions

    data, written = bench.data, {}
    names = data.names["test"]
    few = names[: bench.args.beam_images]
    model.module.eval()

    def ours() -> None:
        written["ours"] = generate_captions(model, data, "test", bench.recipe, 3)

    def theirs() -> None:
        import torch

        places = torch.tensor([data.index_of[one] for one in few])
        looked = (
            (data.pooled_features if model.pooled else data.feature_maps).lookup(places).float()
        )
        written["theirs"] = [
            plain_captions.beam_search(
                model.module, looked[i : i + 1], 3, data.vocabulary.max_length
            )
            for i in range(len(few))
        ]

    generate_captions(model, data, "test", bench.recipe, 3, names[:8])
    seconds = common.alternate({"tarazu": ours, "plain loop": theirs}, bench.args.repeats)
    same = sum(
        written["ours"][one].token_ids == words
        for one, words in zip(few, written["theirs"], strict=True)
    ) / len(few)
    rates = {
        who: [count / s for s in seconds[who]]
        for who, count in (("tarazu", len(names)), ("plain loop", len(few)))
    }
    ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
    bench.tell("tarazu", "beam 3, all together", f"{name}, beam 3", images_per_second=common.spread(rates["tarazu"]), seconds=common.spread(seconds["tarazu"]), ratio=common.spread(ratios), equal_sentences=same)  # fmt: skip
    bench.tell(
        "plain loop",
        "beam 3, one by one",
        f"{name}, beam 3",
        images_per_second=common.spread(rates["plain loop"]),
    )
    print(
        f"{name}: beam 3 over {len(names)} images in {common.spread(seconds['tarazu'])['median']:.2f} s; {same:.0%} of sentences equal the plain search's",
        flush=True,
    )
    if same < 0.9:
        bench.fault(f"{name}: the sentences differ")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = asked.add_mutually_exclusive_group(required=True)
    where.add_argument("--source", help="the folder with Flickr8k")
    where.add_argument("--drawn", type=int, help="so many scenes of the project's own")
    asked.add_argument("--recipe", default="recipes/flickr8k.yaml")
    asked.add_argument("--only", default="features,epochs,tuned,beams", help="which measurements")
    asked.add_argument(
        "--methods", nargs="*", default=["show_and_tell", "show_attend_tell", "transformer"]
    )
    asked.add_argument("--encoder", default="efficientnet-lite0")
    asked.add_argument("--size", type=int, help="side of the encoder's input, if not its own")
    asked.add_argument("--images", type=int, help="features of so many images (default: all)")
    asked.add_argument("--steps", type=int, default=150, help="measured steps of each training")
    asked.add_argument(
        "--warm", type=int, default=60, help="steps before those: shapes are recorded in them"
    )
    asked.add_argument(
        "--tuned-precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of a tuned encoder on a GPU",
    )
    asked.add_argument(
        "--beam-images", type=int, default=40, help="pictures that the plain beam search describes"
    )
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument(
        "--set", nargs="*", default=[], help="changes of the recipe, as in `tarazu run`"
    )
    asked.add_argument("--out", type=Path, default=common.RESULTS / "captions.json")
    args = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        if "features" in args.only:
            measure_features(bench)
        for name in args.methods:
            trained = (
                measure_training(bench, name)
                if "epochs" in args.only or "beams" in args.only
                else None
            )
            if "beams" in args.only:
                measure_beams(bench, name, trained)
        if "tuned" in args.only and "show_attend_tell" in args.methods:
            measure_training(bench, "show_attend_tell", TUNED | {"precision": args.tuned_precision})
        if bench.faults:
            raise SystemExit("; ".join(bench.faults))


if __name__ == "__main__":
    main()
