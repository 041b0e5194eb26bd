"""Small made-up run folders for the report's tests. Every number here is invented, and only tests read it."""

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
    return HOSTILE[i % len(HOSTILE)]


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def update(path: Path, **values) -> None:
    """Change values of a JSON file."""
    write(path, json.loads(path.read_text(encoding="utf-8")) | values)


METHODS = {
    "prompt_tuning": ("prompt_tuning", 2.95, 20_480, 80.0),
    "lora": ("lora", 2.40, 1_900_000, 100.0),
    "lora_high_rank": ("lora", 2.399, 7_600_000, 130.0),
    "layers": ("layers", 2.55, 12_000_000, 60.0),
}


def chat_folder(path: Path, seeds=(0,), hostile: bool = False, methods=tuple(METHODS)) -> Path:
    """A chat study: the untouched model and up to four methods."""
    say = (
        hostile_text
        if hostile
        else (lambda i: f"این یک پاسخ ساختگی است، شمارهٔ {i}. می‌توان آن را خواند.")
    )
    budget = "budget: {tokens: 100000}"
    write(
        path / "resolved.yaml",
        f"task: chat\nmodel: google/gemma-3-270m\nprefer: quality\n{budget}\n",
    )
    made = {
        name: copy.deepcopy(MADE_UP[name])
        for name in ("environment", "chat_data", "chat_model", "search", "judge")
    }
    made["chat_data"]["examples"] = [example(i, say) for i in range(5)]
    if hostile:
        made["environment"]["command"], made["chat_data"]["source"], made["judge"]["model"] = (
            say(0),
            say(1),
            say(0),
        )
        made["chat_data"]["problems"][1]["reason"] = say(2)
    names = {
        "environment": "environment",
        "chat_data": "data",
        "chat_model": "model",
        "search": "lora/search",
        "judge": "judge",
    }
    for name, file in names.items():
        write(path / f"{file}.json", made[name])
    check = {
        "name": say(0) if hostile else "padded = alone",
        "compared": "x",
        "difference": 1e-7,
        "tolerance": 1e-5,
        "reason": "",
        "verdict": "ok",
    }
    invariants = {
        "methods": [{"method": "lora", "kind": "lora", "checks": [check]}],
        "counts": {"ok": 1, "failed": 0, "not applicable": 0},
    }
    write(path / "verify.json", {**invariants, "verdict": "ok"})
    methods = {"base": ("base", 3.2, 0, 0.0), **{name: METHODS[name] for name in methods}}
    write(path / "method_order.json", {"methods": list(methods)})
    for name, (kind, level, trained, seconds) in methods.items():
        for seed in (0,) if name == "base" else seeds:
            folder, rng = path / name / f"seed-{seed}", random.Random(f"{name} {seed}")
            write(folder / "metrics.json", metrics(rng, level))
            write(folder / "samples.jsonl", chat_samples(rng, level, say))
            write(folder / "ledger.json", ledger(seconds, trained))
            if name != "base":
                write_training(
                    folder, name, kind, seed, level, trained, rng, say if hostile else None
                )
    return path


def example(i: int, say) -> dict:
    tokens = (
        [["<bos>", 0], ["سلام", 0], ["\n", 0], [say(i), 1], ["<end_of_turn>", 1]] if i == 0 else []
    )
    turns = [
        {"role": role, "text": say(i * 3 + j)}
        for j, role in enumerate(("system", "user", "assistant"))
    ]
    return {"line": i + 1, "turns": turns, "tokens": tokens}


def metrics(rng: random.Random, level: float) -> dict:
    """A run whose loss is near `level`, on the same twenty rows whatever the method."""
    draw = random.Random(1)
    base = [(draw.randint(20, 200), draw.uniform(2.9, 3.5)) for _ in range(20)]
    rows = [[t * (loss * level / 3.2 + rng.gauss(0, 0.01)), t, t * 6] for t, loss in base]
    loss, gain = sum(r[0] for r in rows) / sum(r[1] for r in rows), 3.2 - level
    rates = {
        "repetition": 0.1,
        "wrong_script": 0.02,
        "unfinished": 0.3,
        "prompt_copy": 0.2,
        "answer_words": 40.0,
    }
    generation = {
        "n": 20,
        "chrf": 30 + 10 * gain,
        "rouge_l": 20 + 8 * gain,
        "checks_passed": 0.2 + 0.4 * gain,
        **rates,
    }
    read = {"exact_match": 0.2, "f1": 0.4, "abstained": 0.1}
    plain = {"loss": 3.0, "bits_per_byte": 1.0, "rows": 8}
    plain["row_losses"] = [[90 + rng.gauss(0, 3), 30, 120] for _ in range(8)]
    return {
        "split": "test",
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss / 6 / math.log(2),
        "rows": 20,
        "row_losses": rows,
        "generation": {"test": generation, "questions": generation},
        "abilities": {
            a: {"n": 3, "checks_passed": min(1.0, (i + 1) / 10 + 0.3 * gain)}
            for i, a in enumerate(ABILITIES)
        },
        "forgetting": {"english": plain, "persian": plain},
        "reading": {
            "n": 6,
            **read,
            "answerable": {"n": 4, **read},
            "unanswerable": {"n": 2, **read},
        },
    }


def chat_samples(rng: random.Random, level: float, say) -> list[dict]:
    found = []
    for i in range(32):
        question = i < 24
        found.append(
            {
                "id": f"q-{i:02d}" if question else f"test-{i:04d}",
                "from": "questions" if question else "test",
                "ability": ABILITIES[i % 8] if question else None,
                "turns": [{"role": "user", "text": say(i)}],
                "reference": None if question else say(i + 1),
                "good": say(i + 2) if question else None,
                "output": say(i + int(level * 10)),
                "finished": i % 3 > 0,
                "tokens": 40,
                "checks": {"names Tehran": rng.random() > level / 4, "one sentence": True}
                if question
                else {},
                "scores": {
                    "chrf": 60 - 10 * level + rng.gauss(0, 6),
                    "rouge_l": 20.0,
                    "repetition": 0.1,
                    "wrong_script": 0.0,
                    "prompt_copy": 0.1,
                },
            }
        )
    for i in range(4):
        found.append(
            {
                "id": f"reading-{i:04d}",
                "from": "reading",
                "ability": None,
                "turns": [{"role": "user", "text": say(i)}],
                "reference": say(i),
                "good": None,
                "output": say(i + 1),
                "finished": True,
                "tokens": 5,
                "checks": {},
                "scores": {"f1": rng.random(), "exact_match": 0.0, "answerable": True},
            }
        )
    return found


def ledger(seconds: float, trained: int) -> dict:
    made = copy.deepcopy(MADE_UP["ledger"]) | {
        "trained_parameters": trained,
        "weights_bytes": trained * 4,
    }
    made["seconds"]["train"] = seconds
    made["train_memory"]["resident"] = 2_000_000_000 + 40 * trained if trained else None
    return made


def write_training(
    folder: Path,
    name: str,
    kind: str,
    seed: int,
    level: float,
    trained: int,
    rng: random.Random,
    say,
) -> None:
    write(
        folder / "run.json",
        {
            "name": name,
            "kind": kind,
            "seed": seed,
            "settings": {"learning_rate": 0.0003, "rank": 16, "note": say(0) if say else "x"},
            "status": "done",
            "error": None,
            "trained_parameters": trained,
            "total_parameters": 268_000_000,
            "trained_tensors": [
                {"name": f"model.layers.{i}.self_attn.q_proj", "shape": [1024, 640]}
                for i in range(4)
            ],
        },
    )
    write_proof(folder, [f"lora_A.{i}" for i in range(4)])
    write(folder / "events.jsonl", events(level, rng, say))


def write_proof(folder: Path, changed: list[str]) -> None:
    proof = {
        "algorithm": "sha256",
        "tensors": 240,
        "trainable": len(changed),
        "changed": changed,
        "unchanged": 240 - len(changed),
    }
    digest = {"digest_before": "a" * 64, "digest_after": "a" * 64}
    write(
        folder / "fingerprint.json",
        {
            **proof,
            "unexpectedly_changed": [],
            "unexpectedly_unchanged": [],
            "verdict": "ok",
            **digest,
        },
    )


def events(level: float, rng: random.Random, say=None, epochs: int = 1, extra=None) -> list[dict]:
    found, steps = [], 60
    for step in range(steps + 1):
        share = step / steps
        loss = level + (3.3 - level) * math.exp(-5 * share)
        if step % 10 == 0:
            found.append(
                {
                    "event": "validation",
                    "step": step,
                    "tokens": step * 1600,
                    "epoch": share * epochs,
                    "loss": loss + 0.03,
                    **(extra(share) if extra else {}),
                }
            )
        found.append(
            {
                "event": "step",
                "step": step + 1,
                "tokens": (step + 1) * 1600,
                "epoch": share * epochs,
                "loss": loss + rng.gauss(0, 0.02),
                "learning_rate": 3e-4,
                "grad_norm": 1 + rng.random(),
                "seconds": step * 1.5,
                "tokens_per_second": 900.0,
            }
        )
    found.append(
        {
            "event": "warning",
            "step": 30,
            "kind": "spike",
            "text": say(1) if say else "loss 3.9 after 2.7",
        }
    )
    return found
