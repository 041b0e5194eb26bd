"""Small made-up run folders for the report's tests. Every number here is invented, and only tests read it."""

from __future__ import annotations

import base64
import io
import json
import math
import random
from pathlib import Path

ABILITIES = ["facts", "reasoning", "summary", "translation", "rewriting", "format", "safety", "chat"]
HOSTILE = [
    "</script><script>document.title='owned'</script>",
    '<img src=x onerror="document.title=\'owned\'">',
    "[پیوند](javascript:document.title='owned') <a href=\"javascript:alert(1)\">x</a>",
    "\u202eبرعکس\u2066 نیمه‌تمام \u0000\u0007 \ud800 ‌",
    "ا" * 20_000,
    "",
    "{{ 7*7 }} {% raw %} ${7*7} ]]> --> <!-- <style>*{display:none}</style>",
]


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in value)
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8")


def lengths(rng: random.Random, top: int) -> dict:
    counts = [rng.randint(1, 40) for _ in range(10)]
    edges = [round(top * i / 10, 1) for i in range(11)]
    return {"mean": top * 0.4, "p50": top * 0.35, "p90": top * 0.8, "p99": top * 0.95, "max": top, "histogram": {"edges": edges, "counts": counts}}


METHODS = {
    "prompt_tuning": ("prompt_tuning", 2.95, 20_480, 80.0),
    "lora": ("lora", 2.40, 1_900_000, 100.0),
    "lora_high_rank": ("lora", 2.399, 7_600_000, 130.0),
    "layers": ("layers", 2.55, 12_000_000, 60.0),
}


def chat_folder(path: Path, seeds=(0,), hostile: bool = False) -> Path:
    """A chat study: the untouched model and four methods."""
    rng = random.Random(1)
    say = (lambda i: HOSTILE[i % len(HOSTILE)]) if hostile else (lambda i: f"این یک پاسخ ساختگی است، شمارهٔ {i}. می‌توان آن را خواند.")
    write(path / "resolved.yaml", "task: chat\nmodel: google/gemma-3-270m\nprefer: quality\nlanguage: auto\nseeds: [0]\nbudget: {tokens: 100000}\n")
    write(path / "recipe.yaml", "task: chat\n")
    write(path / "environment.json", {
        "tarazu": "0.1.0", "commit": "abc", "command": say(0) if hostile else "tarazu run r.yaml --out DIR", "started": "2026-11-23T20:00:00",
        "python": "3.11", "platform": "Linux", "device": {"type": "cpu", "name": "made-up", "memory": 8_000_000_000, "cores": 2},
        "packages": {"torch": "2.13.0", "peft": "0.21.2"}, "recipe_sha256": "0" * 64, "threads": 2})  # fmt: skip
    roles = ["system", "human", "gpt"]
    write(path / "data.json", {
        "source": say(1) if hostile else "rows.jsonl", "sha256": "1" * 64, "note": "made-up rows", "tokenizer": "Gemma",
        "template": {"name": "gemma", "reason": "the tokenizer has no chat template"}, "max_length": 512,
        "splits": {s: {"rows": n, "tokens": n * 190, "supervised": n * 150} for s, n in (("train", 200), ("validation", 20), ("test", 20))},
        "structure": {"rows": 240, "turns_per_row": {"2": 200, "4": 40}, "roles": {"system": 90, "human": 280, "gpt": 280},
                      "lengths": {k: lengths(rng, 900) for k in ("characters", "words", "tokens", "answer_tokens")},
                      "tokens_per_word": 1.9, "english_share": 0.04, "duplicates": 2, "truncated_rows": 3, "truncated_tokens_share": 0.01},
        "problems": [{"reason": "Arabic ye and kaf", "kind": "repaired", "count": 12, "lines": [3, 8, 9]},
                     {"reason": say(2) if hostile else "no answer", "kind": "dropped", "count": 2, "lines": [5, 7]}],
        "examples": [{"line": i + 1, "turns": [{"role": r, "text": say(i * 3 + j)} for j, r in enumerate(roles)],
                      "tokens": [["<bos>", 0], ["سلام", 0], ["\n", 0], [say(i), 1], ["<end_of_turn>", 1]] if i == 0 else []} for i in range(5)]})  # fmt: skip
    write(path / "model.json", {
        "name": "gemma-3-270m", "architecture": "Gemma3ForCausalLM", "model_type": "gemma3", "variant": "base", "variant_reason": "made up",
        "dtype": "float32", "attention": "sdpa", "parameters": 268_000_000, "layers": 4, "hidden": 640, "vocabulary": 262_144, "heads": 4,
        "key_value_heads": 1, "context": 32_768, "sliding_window": 512, "tied_embeddings": True,
        "parts": [{"name": "embeddings", "parameters": 168_000_000, "share": 0.63}]
                 + [{"name": f"layer {i}", "parameters": 25_000_000, "share": 0.0925} for i in range(4)],
        "tensors": [{"name": "model.layers.0.self_attn.q_proj.weight", "shape": [1024, 640], "parameters": 655_360}]})  # fmt: skip
    row_tokens = [rng.randint(20, 200) for _ in range(20)]
    base_rows = [(t, rng.uniform(2.9, 3.5)) for t in row_tokens]
    names = {"base": ("base", 3.2, 0, 0.0), **METHODS}
    for name, (kind, level, trained, seconds) in names.items():
        for seed in (0,) if name == "base" else seeds:
            folder = path / name / f"seed-{seed}"
            noise = random.Random(f"{name} {seed}")
            rows = [[t * (base * level / 3.2 + noise.gauss(0, 0.01)), t, t * 6] for t, base in base_rows]
            loss = sum(r[0] for r in rows) / sum(row_tokens)
            generation = {"n": 20, "chrf": 30 + 10 * (3.2 - level), "rouge_l": 20 + 8 * (3.2 - level), "repetition": 0.1, "wrong_script": 0.02,
                          "unfinished": 0.3, "echo": 0.2, "answer_words": 40.0, "checks_passed": 0.2 + 0.4 * (3.2 - level)}  # fmt: skip
            abilities = {a: {"n": 3, "checks_passed": min(1.0, (i + 1) / 10 + 0.3 * (3.2 - level))} for i, a in enumerate(ABILITIES)}
            plain = {"loss": 3.0, "bits_per_byte": 1.0, "rows": 8, "row_losses": [[90 + noise.gauss(0, 3), 30, 120] for _ in range(8)]}
            reading = {"n": 6, "exact_match": 0.2, "f1": 0.4, "abstained": 0.1}
            write(folder / "metrics.json", {
                "forgetting": {"english": plain, "persian": plain}, "reading": reading, "split": "test", "loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / 6 / math.log(2), "rows": 20,
                "row_losses": rows, "generation": {"test": generation, "questions": generation}, "abilities": abilities})  # fmt: skip
            write(folder / "samples.jsonl", chat_samples(noise, level, say))
            write(folder / "ledger.json", ledger(seconds, trained))
            if name != "base":
                write_training(folder, name, kind, seed, level, trained, noise, say if hostile else None)
    write(path / "order.json", {"methods": list(names)})
    tried = [{"settings": {"learning_rate": rate}, "rounds": [{"tokens": 5000, "loss": loss}]} for rate, loss in ((1e-4, 3.0), (1e-3, 2.6), (1e-2, None))]
    write(path / "lora" / "search.json", {"tokens": 15_000, "seconds": 30.0, "candidates": tried, "winner": {"learning_rate": 1e-3}, "loss": 2.6, "edges": []})
    judged = {"seed": 0, "questions": 20, "win": 12, "tie": 5, "loss": 3, "no_verdict": 0, "inconsistent": 4, "identical": 1, "win_rate": 0.72, "interval": [0.5, 0.87], "first_rate": 0.5}
    write(path / "judge.json", {"model": say(0) if hostile else "some-judge", "against": "base", "methods": {"lora": judged}})
    return path


def chat_samples(rng: random.Random, level: float, say) -> list[dict]:
    found = []
    for i in range(32):
        question = i < 24
        found.append({
            "id": f"q-{i:02d}" if question else f"test-{i:04d}", "from": "questions" if question else "test",
            "ability": ABILITIES[i % 8] if question else None, "turns": [{"role": "human", "text": say(i)}], "reference": None if question else say(i + 1),
            "good": say(i + 2) if question else None, "output": say(i + int(level * 10)), "finished": i % 3 > 0, "tokens": 40,
            "checks": {"names Tehran": rng.random() > level / 4, "one sentence": True} if question else {},
            "scores": {"chrf": 60 - 10 * level + rng.gauss(0, 6), "rouge_l": 20.0, "repetition": 0.1, "wrong_script": 0.0, "echo": 0.1}})  # fmt: skip
    for i in range(4):
        found.append({"id": f"reading-{i:04d}", "from": "reading", "ability": None, "turns": [{"role": "human", "text": say(i)}], "reference": say(i), "good": None,
                      "output": say(i + 1), "finished": True, "tokens": 5, "checks": {}, "scores": {"f1": rng.random(), "exact_match": 0.0, "answerable": True}})  # fmt: skip
    return found


def ledger(seconds: float, trained: int) -> dict:
    return {"seconds": {"load": 5.0, "tokenise": 1.0, "train": seconds, "validate": 9.0, "generate": 30.0, "evaluate": 8.0, "checkpoint": 2.0, "fingerprint": 1.0},
            "train_memory": {"allocated": None, "reserved": None, "resident": 2_000_000_000 + 40 * trained} if trained else {"resident": None},
            "tokens": {"rows": 200, "tokens": 100_000, "supervised": 80_000, "padding": 4_000, "virtual": 0}, "tokens_per_second": 900.0 if trained else None,
            "trained_parameters": trained, "total_parameters": 268_000_000, "weights_bytes": trained * 4, "steps": 60, "energy_joules": None,
            "paths": {"attention": "sdpa", "layout": "packed"}}  # fmt: skip


def write_training(folder: Path, name: str, kind: str, seed: int, level: float, trained: int, rng: random.Random, say) -> None:
    write(folder / "run.json", {
        "name": name, "kind": kind, "seed": seed, "settings": {"learning_rate": 0.0003, "rank": 16, "note": say(0) if say else "x"}, "status": "done",
        "error": None, "trained_parameters": trained, "total_parameters": 268_000_000,
        "targets": [{"name": f"model.layers.{i}.self_attn.q_proj", "shape": [1024, 640]} for i in range(4)]})  # fmt: skip
    write(folder / "fingerprint.json", {
        "algorithm": "sha256", "tensors": 240, "may_change": 4, "changed": [f"lora_A.{i}" for i in range(4)], "unchanged": 236, "wrongly_changed": [],
        "wrongly_unchanged": [], "verdict": "ok", "digest_before": "a" * 64, "digest_after": "a" * 64})  # fmt: skip
    write(folder / "events.jsonl", events(level, rng, say))


def events(level: float, rng: random.Random, say=None, epochs: int = 1, extra=None) -> list[dict]:
    found, steps = [], 60
    for step in range(steps + 1):
        share = step / steps
        loss = level + (3.3 - level) * math.exp(-5 * share)
        if step % 10 == 0:
            found.append({"event": "validation", "step": step, "tokens": step * 1600, "epoch": share * epochs, "loss": loss + 0.03, **(extra(share) if extra else {})})
        found.append({"event": "step", "step": step + 1, "tokens": (step + 1) * 1600, "epoch": share * epochs, "loss": loss + rng.gauss(0, 0.02),
                      "learning_rate": 3e-4, "grad_norm": 1 + rng.random(), "seconds": step * 1.5, "tokens_per_second": 900.0})  # fmt: skip
    found.append({"event": "warning", "step": 30, "kind": "spike", "text": say(1) if say else "loss 3.9 after 2.7"})
    return found


def jpeg(seed: int, size: int = 224) -> bytes:
    from PIL import Image, ImageDraw

    rng = random.Random(seed)
    image = Image.new("RGB", (size, size), tuple(rng.randint(0, 255) for _ in range(3)))
    ImageDraw.Draw(image).ellipse((40, 60, 150, 170), fill=tuple(rng.randint(0, 255) for _ in range(3)))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def data_uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def captions_folder(path: Path, hostile: bool = False) -> Path:
    """A captioning study: three models on twelve drawn images."""
    rng = random.Random(2)
    say = (lambda i: HOSTILE[i % len(HOSTILE)]) if hostile else (lambda i: f"a red circle near square number {i}")
    ids = [f"drawn-{i:03d}.jpg" for i in range(12)]
    for i, name in enumerate(ids):
        (path / "images").mkdir(parents=True, exist_ok=True)
        (path / "images" / name).write_bytes(jpeg(i))
    write(path / "resolved.yaml", "task: captions\nencoder: efficientnet-lite0\nprefer: quality\nseeds: [0]\nbudget: {epochs: 5}\n")
    write(path / "environment.json", {"tarazu": "0.1.0", "command": "tarazu run", "device": {"type": "cpu", "name": "x", "memory": 1, "cores": 2}, "packages": {}})
    words = {"train": lengths(rng, 20), "validation": lengths(rng, 20), "test": lengths(rng, 20)}
    write(path / "data.json", {
        "source": "drawn", "sha256": "2" * 64, "note": None, "layout": "drawn", "split_by": "image", "vocabulary_specials": ["<pad>", "<sos>", "<eos>", "<unk>"],
        "splits": {s: {"images": n, "captions": n * 5} for s, n in (("train", 240), ("validation", 30), ("test", 30))},
        "structure": {"images": 300, "captions": 1500, "lengths": lengths(rng, 20), "lengths_per_split": words, "length_points": [[i, 5 + i % 9] for i in range(40)],
                      "top_words": [[say(1) if hostile and i == 0 else f"word{i}", 500 - 20 * i] for i in range(20)], "vocabulary": 60, "min_count": 2,
                      "max_length": 20, "unknown_test_share": 0.01, "size_by_min_count": {"1": 80, "2": 60}},
        "problems": [], "duplicates": [{"a": ids[0], "b": ids[1], "kind": "near"}],
        "examples": [{"id": n, "image": f"images/{n}", "captions": [say(i)] * 5, "processed": [["a", "red", "circle"]] * 5, "ids": [[1, 5, 6, 7, 2, 0, 0]] * 5} for i, n in enumerate(ids[:5])]})  # fmt: skip
    write(path / "model.json", {"encoder": {
        "name": "EfficientNet-Lite0", "source": "PyPI", "sha256": "3" * 64, "parameters": 3_400_000, "input": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3,
        "features": [49, 1280], "map": [7, 7], "pooled": 1280, "weights_note": "made up"}})  # fmt: skip
    for name, level in (("show_and_tell", 52.0), ("show_attend_tell", 60.0), ("transformer", 57.0)):
        caption_run(path / name / "seed-0", name, level, ids, say)
    return path


def scores(level: float) -> dict:
    return {"bleu": [level, level * 0.7, level * 0.5, level * 0.35], "bleu_no_penalty": [level * 1.05, level * 0.74, level * 0.53, level * 0.37],
            "brevity_penalty": 0.95, "cider": level, "rouge_l": level * 0.8, "meteor": None, "intervals": {"bleu4": [level * 0.33, level * 0.37], "cider": [level - 3, level + 3]}}  # fmt: skip


def caption_run(folder: Path, name: str, level: float, ids: list[str], say) -> None:
    rng = random.Random(name)
    weights = [[rng.random() ** 4 for _ in range(49)] for _ in range(4)]
    attention = [[w / sum(row) for w in row] for row in weights]
    shown = [{"id": ids[0], "output": say(3)}]
    write(folder / "run.json", {"name": name, "kind": name, "seed": 0, "settings": {"learning_rate": 1e-3}, "status": "done", "error": None,
                                "trained_parameters": 5_000_000, "total_parameters": 8_400_000, "targets": []})  # fmt: skip
    found = events(2.5, rng, epochs=5, extra=lambda share: {"bleu4": 20 * share, "cider": level * share})
    found += [{"event": "sample", "step": 12 * e, "tokens": 12 * 1600 * e, "epoch": float(e), "samples": shown} for e in range(1, 6)]
    write(folder / "events.jsonl", found)
    write(folder / "ledger.json", ledger(level * 3, 5_000_000))
    write(folder / "fingerprint.json", {"algorithm": "sha256", "tensors": 300, "may_change": 10, "changed": [f"decoder.{i}" for i in range(10)], "unchanged": 290,
                                        "wrongly_changed": [], "wrongly_unchanged": [], "verdict": "ok", "digest_before": "b" * 64, "digest_after": "b" * 64})  # fmt: skip
    rate = {"precision": 0.6, "recall": 0.4, "f1": 0.48, "mentions": 20, "expected": 30}
    errors = {"categories": {"objects": rate, "colours": rate, "counts": {**rate, "precision": None, "f1": None}}, "invented": [["dog", 4]], "missed": [["ball", 3]]}
    write(folder / "metrics.json", {
        "split": "test", "loss": 2.5, "perplexity": 12.0, "images": 12, "decoding": {"greedy": scores(level - 2), "beam3": scores(level)},
        "yardsticks": {"human": scores(83.0), "constant": scores(9.6), "shuffled": scores(4.5)}, "errors": errors,
        "diversity": {"vocabulary_used": 40, "new_share": 0.8, "distinct_share": 0.7, "words_mean": 9.1},
        "entropy": None if name == "show_and_tell" else {"mean": 2.9, "most": math.log(49), "variation": 0.3}})  # fmt: skip
    write(folder / "samples.jsonl", [
        {"id": n, "image": f"images/{n}", "references": [say(i)] * 5, "greedy": say(i), "beam3": say(i + 1), "scores": {"bleu4": rng.random() * 40, "cider": level + rng.gauss(0, 20)},
         "errors": {"invented": ["dog"], "missed": ["ball"]}, **({"words": ["a", "red", "circle", "<eos>"], "attention": attention} if i < 2 and name != "show_and_tell" else {})}
        for i, n in enumerate(ids)])  # fmt: skip
