"""Instruction tuning as a task of the engine: rows in, losses, answers and scores out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from tarazu.chat import answers, flops, prepared_data
from tarazu.chat.compatibility import require_compatible
from tarazu.chat.cost import ChatCost
from tarazu.chat.data import preview
from tarazu.chat.evaluation import forgetting, reading_comprehension, text_metrics
from tarazu.chat.fast import compile_layers, fused_lora, fused_mlp, lightweight_adapters
from tarazu.chat.inference import export
from tarazu.chat.invariants import ChatInvariants
from tarazu.chat.model import building, quantization, summary
from tarazu.chat.model.batching import ChatBatch
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.prepared_data import ChatData
from tarazu.chat.row_losses import losses, make_batches, row_losses, summed_losses, tokenized_rows
from tarazu.chat.settings import ChatRecipe
from tarazu.engine.ledger import Ledger
from tarazu.engine.task import Task
from tarazu.engine.trainable import LossSum
from tarazu.storage.atomic_io import write_json, write_jsonl
from tarazu.storage.run_folder import StudyDir

TEST_METRICS = (
    "chrf",
    "rouge_l",
    "repetition",
    "wrong_script",
    "unfinished",
    "prompt_copy",
    "answer_words",
)


class Chat(Task):
    """Instruction tuning of a causal language model. `tarazu.engine.task.Task` is the contract."""

    name = "chat"
    cost = ChatCost()
    invariants = ChatInvariants()
    reuses_models = True

    def validate_recipe(self, recipe: ChatRecipe) -> None:
        for name in recipe.methods:
            require_compatible(recipe, name)

    def prepare(self, recipe: ChatRecipe, folder: StudyDir, device: torch.device) -> ChatData:
        return prepared_data.prepare(recipe, folder, device)

    def build(
        self,
        recipe: ChatRecipe,
        name: str,
        data: ChatData,
        seed: int,
        device: torch.device,
        folder: StudyDir | None = None,
    ) -> TrainableChatModel:
        model = building.load_base(recipe, name, device)
        if folder is not None and not (folder.path / "model.json").exists():
            content = {**summary.model_summary(model, recipe.model), "variant_reason": None}
            write_json(folder.path / "model.json", content)
        torch.manual_seed(seed)
        return building.wrap_model(recipe, name, model, data.tokenizer)

    def collate(
        self, model: TrainableChatModel, data: ChatData, split: str, rows: list[int], limit: int
    ) -> list[ChatBatch]:
        return make_batches(model, tokenized_rows(data, split, rows), limit, data.packed)

    def loss(self, model: TrainableChatModel, batch: ChatBatch) -> LossSum:
        return LossSum(losses(model, batch).sum(), len(batch.labels))

    def validate(
        self, model: TrainableChatModel, data: ChatData, recipe: ChatRecipe
    ) -> dict[str, float]:
        budget = recipe.budget
        rows = row_losses(
            model, data, "validation", budget.micro_batch_tokens, budget.validation_rows
        )
        return {"loss": sum(row[0] for row in rows) / sum(row[1] for row in rows)}

    def sample(
        self, model: TrainableChatModel, data: ChatData, recipe: ChatRecipe, final: bool
    ) -> list[answers.Sample]:
        choose = answers.evaluation_prompts if final else answers.validation_prompts
        return answers.answer(model, data, recipe, choose(data, recipe))

    def evaluate(
        self,
        model: TrainableChatModel,
        data: ChatData,
        recipe: ChatRecipe,
        folder: Path,
        ledger: Ledger,
    ) -> dict[str, Any]:
        if model.graphed_forward is not None:
            model.graphed_forward.clear()
        limit = recipe.budget.micro_batch_tokens
        with ledger.phase("evaluate"):
            rows = row_losses(model, data, "test", limit)
            forgotten = forgetting.measure(
                data.forgetting, lambda passages: summed_losses(model, data, passages, limit)
            )
        with ledger.phase("generate"):
            samples = self.sample(model, data, recipe, final=True)
            reading = answers.answer_reading(model, data, recipe)
        write_jsonl(folder / "samples.jsonl", samples + reading)
        nats, tokens, answer_bytes = (sum(column) for column in zip(*rows, strict=True))
        metrics = {
            "split": "test",
            "loss": nats / tokens,
            "perplexity": math.exp(min(nats / tokens, 700)),
            "bits_per_byte": nats / math.log(2) / answer_bytes,
            "rows": len(rows),
            "row_losses": rows,
            **_answer_metrics(samples),
        }
        if forgotten:
            metrics["forgetting"] = forgotten
        if reading:
            scores = [sample["scores"] for sample in reading]
            metrics["reading"] = reading_comprehension.aggregate(scores)
        return metrics

    def summary(self, metrics: dict[str, Any]) -> dict[str, Any]:
        test, designed = metrics["generation"]["test"], metrics["generation"]["questions"]
        row = {name: metrics[name] for name in ("loss", "perplexity", "bits_per_byte")}
        row |= {name: test[name] for name in TEST_METRICS}
        row["wrong_script"] = text_metrics.weighted_mean([test, designed], "wrong_script")
        row["checks_passed"] = designed["checks_passed"]
        for language, forgotten in metrics.get("forgetting", {}).items():
            row[f"{language}_bits_per_byte"] = forgotten["bits_per_byte"]
        if "reading" in metrics:
            row |= {f"reading_{name}": metrics["reading"][name] for name in ("exact_match", "f1")}
        return row

    def flops_per_token(
        self, model: TrainableChatModel, data: ChatData, recipe: ChatRecipe
    ) -> float:
        lengths = data.store.lengths("train")
        supervised = data.store.column("train", "answer_tokens")
        fraction = float(supervised.sum() / lengths.sum())
        step_tokens = recipe.budget.batch_rows * float(lengths.mean())
        pass_tokens = min(recipe.budget.micro_batch_tokens, step_tokens)
        return flops.flops_per_token(
            flops.count_flops(model), model, lengths, fraction, pass_tokens
        )

    def code_paths(self, model: TrainableChatModel, data: ChatData) -> dict[str, str]:
        attention = model.base.config._attn_implementation
        paths = {
            "attention": "FlashAttention 4" if model.use_cu_seqlens else attention,
            "layout": "packed" if data.packed else "padded",
            "layers": ", ".join(_layer_paths(model)),
        }
        if quantization.is_quantized(model.base):
            paths["weights"] = "4 bits (NF4)"
        return paths

    def trained_tensors(self, model: TrainableChatModel) -> list[dict[str, Any]]:
        return summary.trained_tensors(model)

    def preview(self, data: dict[str, Any], rows: int) -> None:
        preview.show(data, rows=rows)

    def export(self, run_path: str, target: Path, export_format: str) -> None:
        export.export(run_path, target, export_format)


def _answer_metrics(samples: list[answers.Sample]) -> dict[str, Any]:
    """Aggregated scores of the answers: test rows, designed questions, and each ability."""
    designed = [sample for sample in samples if sample["from"] == "questions"]
    test = [sample for sample in samples if sample["from"] == "test"]
    by_ability: dict[str, list[answers.Sample]] = {}
    for sample in designed:
        by_ability.setdefault(sample["ability"], []).append(sample)
    return {
        "generation": {
            "test": text_metrics.aggregate(test),
            "questions": text_metrics.aggregate(designed),
        },
        "abilities": {
            ability: text_metrics.aggregate(group) for ability, group in by_ability.items()
        },
    }


def _layer_paths(model: TrainableChatModel) -> list[str]:
    """How the decoder layers ran."""
    if compile_layers.is_compiled(model.base):
        paths = ["compiled"]
    elif lightweight_adapters.has_lightweight_adapters(model.base):
        paths = ["lightweight adapters"]
    else:
        paths = ["plain"]
    if fused_lora.has_fused_lora(model.base):
        paths.append("fused LoRA")
    if fused_mlp.has_fused_mlp(model.base):
        paths.append("fused MLP")
    graphs = model.graphed_forward
    if graphs is not None and (graphs.num_captured or graphs.failure_reason):
        paths.append(graphs.failure_reason or "CUDA graphs")
    return paths
