"""Small run folders of invented chat studies. Every number here is invented; only tests read it."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path

ABILITIES = [
    "facts",
    "reasoning",
    "summary",
    "translation",
    "rewriting",
    "format",
    "safety",
    "chat",
]
HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "[پیوند](javascript:document.title='owned') <a href=\"javascript:alert(1)\">x</a>",
    "\u202eبرعکس\u2066 نیمه‌تمام \u0000\u0007 \ud800 ‌",
    "ا" * 20_000,
    "",
    "{{ 7*7 }} {% raw %} ${7*7} ]]> --> <!-- <style>*{display:none}</style>",
]


MADE_UP = json.loads((Path(__file__).parent / "made_up.json").read_text(encoding="utf-8"))


def hostile_text(i: int) -> str:
    """Text that tries to run as script, to change the text's direction or to break the layout."""
    return HOSTILE[i % len(HOSTILE)]


def persian_text(i: int) -> str:
    return f"این یک پاسخ ساختگی است، شمارهٔ {i}. می‌توان آن را خواند."


def write(path: Path, value) -> None:
    """Write a value as JSON, rows as JSONL, or text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def update(path: Path, **values) -> None:
    """Change values of a JSON file."""
    write(path, json.loads(path.read_text(encoding="utf-8")) | values)


# Name: (kind, loss, trained parameters, training seconds).
METHODS = {
    "prompt_tuning": ("prompt_tuning", 2.95, 20_480, 80.0),
    "lora": ("lora", 2.40, 1_900_000, 100.0),
    "lora_high_rank": ("lora", 2.399, 7_600_000, 130.0),
    "layers": ("layers", 2.55, 12_000_000, 60.0),
}


def chat_folder(path: Path, seeds=(0,), hostile: bool = False, methods=tuple(METHODS)) -> Path:
    """Write a chat study of the base model and some of `METHODS`.

    Args:
        hostile: whether all texts are `hostile_text`.
    """
    text = hostile_text if hostile else persian_text
    recipe = "task: chat\nmodel: google/gemma-3-270m\nprefer: quality\nbudget: {tokens: 100000}\n"
    write(path / "resolved.yaml", recipe)
    write_study_files(path, text, hostile)
    runs = {"base": ("base", 3.2, 0, 0.0), **{name: METHODS[name] for name in methods}}
    write(path / "method_order.json", {"methods": list(runs)})
    for name, (kind, loss, trained, seconds) in runs.items():
        for seed in (0,) if name == "base" else seeds:
            folder, rng = path / name / f"seed-{seed}", random.Random(f"{name} {seed}")
            write(folder / "metrics.json", metrics(rng, loss))
            write(folder / "samples.jsonl", chat_samples(rng, loss, text))
            write(folder / "ledger.json", ledger(seconds, trained))
            if name != "base":
                write_training(folder, name, kind, seed, trained, text if hostile else None)
                write(folder / "events.jsonl", events(loss, rng, text if hostile else None))
    return path


def write_study_files(path: Path, text, hostile: bool) -> None:
    """Write the files of the whole study: data, model, search, judge and invariants."""
    files = copy.deepcopy(MADE_UP)
    environment, data, judge = files["environment"], files["chat_data"], files["judge"]
    data["examples"] = [example(i, text) for i in range(5)]
    if hostile:
        environment["command"], data["source"], judge["model"] = text(0), text(1), text(0)
        data["problems"][1]["reason"] = text(2)
    write(path / "environment.json", environment)
    write(path / "data.json", data)
    write(path / "model.json", files["chat_model"])
    write(path / "lora/search.json", files["search"])
    write(path / "judge.json", judge)
    check = {
        "name": text(0) if hostile else "padded = alone",
        "compared": "x",
        "difference": 1e-7,
        "tolerance": 1e-5,
        "reason": "",
        "verdict": "ok",
    }
    verify = {
        "methods": [{"method": "lora", "kind": "lora", "checks": [check]}],
        "counts": {"ok": 1, "failed": 0, "not applicable": 0},
        "verdict": "ok",
    }
    write(path / "verify.json", verify)


def example(i: int, text) -> dict:
    """A row of data.json with a system prompt, a question and an answer; the first has tokens."""
    tokens = []  # [text, whether it counts in the loss]
    if i == 0:
        tokens = [["<bos>", 0], ["سلام", 0], ["\n", 0], [text(i), 1], ["<end_of_turn>", 1]]
    roles = ("system", "user", "assistant")
    turns = [{"role": role, "text": text(i * 3 + j)} for j, role in enumerate(roles)]
    return {"line": i + 1, "turns": turns, "tokens": tokens}


def metrics(rng: random.Random, level: float) -> dict:
    """metrics.json of a run whose loss is near `level`; all methods have the same twenty rows."""
    same_rows = random.Random(1)
    rows = [(same_rows.randint(20, 200), same_rows.uniform(2.9, 3.5)) for _ in range(20)]
    row_losses = [
        [tokens * (loss * level / 3.2 + rng.gauss(0, 0.01)), tokens, tokens * 6]
        for tokens, loss in rows
    ]
    loss, gain = sum(row[0] for row in row_losses) / sum(row[1] for row in row_losses), 3.2 - level
    generation = {
        "n": 20,
        "chrf": 30 + 10 * gain,
        "rouge_l": 20 + 8 * gain,
        "checks_passed": 0.2 + 0.4 * gain,
        "repetition": 0.1,
        "wrong_script": 0.02,
        "unfinished": 0.3,
        "prompt_copy": 0.2,
        "answer_words": 40.0,
    }
    abilities = {
        name: {"n": 3, "checks_passed": min(1.0, (i + 1) / 10 + 0.3 * gain)}
        for i, name in enumerate(ABILITIES)
    }
    reading = {"exact_match": 0.2, "f1": 0.4, "abstained": 0.1}
    forgetting = {"loss": 3.0, "bits_per_byte": 1.0, "rows": 8}
    forgetting["row_losses"] = [[90 + rng.gauss(0, 3), 30, 120] for _ in range(8)]
    return {
        "split": "test",
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss / 6 / math.log(2),
        "rows": 20,
        "row_losses": row_losses,
        "generation": {"test": generation, "questions": generation},
        "abilities": abilities,
        "forgetting": {"english": forgetting, "persian": forgetting},
        "reading": {
            "n": 6,
            **reading,
            "answerable": {"n": 4, **reading},
            "unanswerable": {"n": 2, **reading},
        },
    }


def chat_samples(rng: random.Random, level: float, text) -> list[dict]:
    """24 designed questions, 8 test rows and 4 rows of reading comprehension."""
    samples = [_question(i, rng, level, text) for i in range(24)]
    samples += [_test_row(i, rng, level, text) for i in range(24, 32)]
    return samples + [_reading_row(i, rng, text) for i in range(4)]


def _question(i: int, rng: random.Random, level: float, text) -> dict:
    return {
        "id": f"q-{i:02d}",
        "from": "questions",
        "ability": ABILITIES[i % 8],
        "turns": [{"role": "user", "text": text(i)}],
        "reference": None,
        "good": text(i + 2),
        "output": text(i + int(level * 10)),
        "finished": i % 3 > 0,
        "tokens": 40,
        "checks": {"names Tehran": rng.random() > level / 4, "one sentence": True},
        "scores": _text_scores(rng, level),
    }


def _test_row(i: int, rng: random.Random, level: float, text) -> dict:
    return {
        "id": f"test-{i:04d}",
        "from": "test",
        "ability": None,
        "turns": [{"role": "user", "text": text(i)}],
        "reference": text(i + 1),
        "good": None,
        "output": text(i + int(level * 10)),
        "finished": i % 3 > 0,
        "tokens": 40,
        "checks": {},
        "scores": _text_scores(rng, level),
    }


def _text_scores(rng: random.Random, level: float) -> dict[str, float]:
    return {
        "chrf": 60 - 10 * level + rng.gauss(0, 6),
        "rouge_l": 20.0,
        "repetition": 0.1,
        "wrong_script": 0.0,
        "prompt_copy": 0.1,
    }


def _reading_row(i: int, rng: random.Random, text) -> dict:
    return {
        "id": f"reading-{i:04d}",
        "from": "reading",
        "ability": None,
        "turns": [{"role": "user", "text": text(i)}],
        "reference": text(i),
        "good": None,
        "output": text(i + 1),
        "finished": True,
        "tokens": 5,
        "checks": {},
        "scores": {"f1": rng.random(), "exact_match": 0.0, "answerable": True},
    }


def ledger(seconds: float, trained: int) -> dict:
    """ledger.json of a run that took so long and trained so many parameters."""
    content = copy.deepcopy(MADE_UP["ledger"])
    content |= {"trained_parameters": trained, "weights_bytes": trained * 4}
    content["seconds"]["train"] = seconds
    content["train_memory"]["resident"] = 2_000_000_000 + 40 * trained if trained else None
    return content


def write_training(folder: Path, name: str, kind: str, seed: int, trained: int, text) -> None:
    """Write run.json and fingerprint.json of a trained run."""
    tensors = [
        {"name": f"model.layers.{i}.self_attn.q_proj", "shape": [1024, 640]} for i in range(4)
    ]
    run_info = {
        "name": name,
        "kind": kind,
        "seed": seed,
        "settings": {"learning_rate": 0.0003, "rank": 16, "note": text(0) if text else "x"},
        "status": "done",
        "error": None,
        "trained_parameters": trained,
        "total_parameters": 268_000_000,
        "trained_tensors": tensors,
    }
    write(folder / "run.json", run_info)
    write_proof(folder, [f"lora_A.{i}" for i in range(4)])


def write_proof(folder: Path, changed: list[str]) -> None:
    """Write fingerprint.json of a run that changed these of 240 tensors."""
    proof = {
        "algorithm": "sha256",
        "tensors": 240,
        "trainable": len(changed),
        "changed": changed,
        "unchanged": 240 - len(changed),
        "unexpectedly_changed": [],
        "unexpectedly_unchanged": [],
        "verdict": "ok",
        "digest_before": "a" * 64,
        "digest_after": "a" * 64,
    }
    write(folder / "fingerprint.json", proof)


def events(level: float, rng: random.Random, text=None, epochs: int = 1, extra=None) -> list[dict]:
    """Events of 60 steps whose loss falls to `level`, with seven validations and a warning.

    Args:
        extra: returns further metrics of a validation at a fraction of the training.
    """
    rows, steps = [], 60
    for step in range(steps + 1):
        fraction = step / steps
        loss = level + (3.3 - level) * math.exp(-5 * fraction)
        if step % 10 == 0:
            validation = {
                "event": "validation",
                "step": step,
                "tokens": step * 1600,
                "epoch": fraction * epochs,
                "loss": loss + 0.03,
            }
            rows.append(validation | (extra(fraction) if extra else {}))
        rows.append(
            {
                "event": "step",
                "step": step + 1,
                "tokens": (step + 1) * 1600,
                "epoch": fraction * epochs,
                "loss": loss + rng.gauss(0, 0.02),
                "learning_rate": 3e-4,
                "grad_norm": 1 + rng.random(),
                "seconds": step * 1.5,
                "tokens_per_second": 900.0,
            }
        )
    spike = text(1) if text else "loss 3.9 after 2.7"
    rows.append({"event": "warning", "step": 30, "kind": "spike", "text": spike})
    return rows
