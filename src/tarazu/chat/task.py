"""Instruction tuning, as the engine sees it: rows in, losses, answers and scores out."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import tarazu
from tarazu.chat import flops
from tarazu.chat.compatibility import require_compatible
from tarazu.chat.data import chat_template, dataset
from tarazu.chat.data.persian import english_fraction
from tarazu.chat.evaluation import (
    forgetting,
    generation,
    questions,
    reading_comprehension,
    text_metrics,
)
from tarazu.chat.fast import (
    compile_layers,
    fused_lora,
    fused_mlp,
    graphed_forward,
    lightweight_adapters,
)
from tarazu.chat.model import flash_attention, flex_attention, loading, quantization
from tarazu.chat.model import summary as model_card
from tarazu.chat.model.batching import ChatBatch, TokenizedRow, bin_pack, make_batch, pack_rows
from tarazu.chat.model.loss import SMALL_CHUNK, token_losses
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.settings import ChatRecipe, Sources
from tarazu.engine import dropout
from tarazu.engine.trainable import LossSum
from tarazu.engine.precision import uses_bfloat16
from tarazu.errors import UserError
from tarazu.storage.run_folder import StudyDir, write_json, write_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tarazu.engine.ledger import Ledger

NO_CHECKPOINTING = {
    "prefix_tuning"
}  # by transformers, which drops the cache and the prefix with it; attention by blocks does its own


@dataclass
class ChatData:
    """Tokenised rows, and what turns text into tokens and back."""

    store: dataset.ChatDataset
    template: chat_template.Template
    tokenizer: PreTrainedTokenizerBase
    questions: list[questions.Question]
    packed: bool
    forgetting: dict[str, forgetting.Passages] = field(default_factory=dict)
    reading: list[dict] = field(default_factory=list)

    def size(self, split: str) -> int:
        return self.store.size(split)


class Chat:
    """See `engine.task.Task`."""

    name = "chat"

    def admit(self, recipe: ChatRecipe) -> None:
        for name in recipe.methods:
            require_compatible(recipe, name)

    def prepare(self, recipe: ChatRecipe, folder: StudyDir, device: torch.device) -> ChatData:
        tokenizer = loading.load_tokenizer(recipe.model, recipe.revision)
        chosen = chat_template.select_template(
            tokenizer, loading.model_type(recipe.model, recipe.revision)
        )
        data = recipe.data
        source = resolve_samples(
            data.source.model_dump() if isinstance(data.source, Sources) else data.source
        )
        split = data.split.model_dump()
        made = dataset.prepare(
            source,
            tokenizer,
            chosen,
            max_length=data.max_length,
            split=split,
            seed=data.split_seed,
            cache=loading.cache_folder() / "rows",
            rows=data.rows,
            duplicates=data.duplicates,
            note=data.model_dump()["note"],
        )
        designed = questions.load(resolve_samples(recipe.questions)) if recipe.questions else []
        passages = forgetting.prepare(recipe.forgetting, chosen) if recipe.forgetting else {}
        read = reading_comprehension.prepare(recipe.reading, chosen) if recipe.reading else []
        extra = {"forgetting": {language: found.describe() for language, found in passages.items()}}
        if recipe.reading:
            extra["reading"] = reading_comprehension.describe(recipe.reading, read)
        require_unchanged(folder, extra)
        named = {
            "tokenizer": recipe.model,
            "source": written(data.source),
        }  # as the recipe says it, not where it lies here
        write_json(folder.path / "data.json", {**made.summary(), **named, **extra})
        packed = recipe.layout == "packed" or (recipe.layout == "auto" and device.type == "cuda")
        return ChatData(made, chosen, tokenizer, designed, packed, passages, read)

    def build(
        self,
        recipe: ChatRecipe,
        name: str,
        data: ChatData,
        seed: int,
        device: torch.device,
        folder: StudyDir | None = None,
    ) -> TrainableChatModel:
        model = self.load(recipe, name, device)
        if folder is not None and not (folder.path / "model.json").exists():
            write_json(
                folder.path / "model.json",
                {**model_card.model_summary(model, recipe.model), "variant_reason": None},
            )
        torch.manual_seed(seed)
        return self.ready(recipe, name, model, data.tokenizer)

    def load(self, recipe: ChatRecipe, name: str, device: torch.device) -> PreTrainedModel:
        """The base model for one method. Raises `UserError` when the method cannot work with it."""
        require_compatible(recipe, name)
        dtype = torch.bfloat16 if uses_bfloat16(recipe.budget, device) else torch.float32
        return loading.load_model(
            recipe.model, recipe.revision, dtype, device, recipe.attention, recipe.quantize
        )

    def ready(
        self,
        recipe: ChatRecipe,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> TrainableChatModel:
        """A loaded model as one method of the recipe trains it."""
        method = recipe.methods[name]
        trainable = method.attach(model, tokenizer)
        trainable.learning_rate = method.learning_rate
        trainable.loss_chunk = SMALL_CHUNK if recipe.memory == "low" else None
        trainable.module.to(model.device)
        for parameter in trainable.trainable().values():
            parameter.data = parameter.data.float()  # small steps vanish in bfloat16
        if recipe.budget.gradient_checkpointing and method.kind not in NO_CHECKPOINTING:
            draws = dropout.uses_dropout(
                model
            )  # else the state of the dice is not kept, which could not be recorded
            model.gradient_checkpointing_enable(
                {"use_reentrant": False, "preserve_rng_state": draws}
            )
        if recipe.fast:
            lightweight_adapters.use_lightweight_forward(model)
        trainable.use_cu_seqlens = uses_flash_attention(trainable, recipe)
        on_gpu = recipe.fast and model.device.type == "cuda"
        if flex_attention.uses_flex_attention(model):
            prepare = compile_layers.compile_layers if on_gpu else compile_layers.wrap_layers
            prepare(model, recipe.budget.gradient_checkpointing)
        trainable.graphed_forward = graphed_forward.make_graphed_forward(trainable) if on_gpu else None
        return trainable

    def collate(
        self, trainable: TrainableChatModel, data: ChatData, split: str, rows: list[int], limit: int
    ) -> list[ChatBatch]:
        return self.lay_out(
            trainable, data, [TokenizedRow(*data.store.row(split, i), index=i) for i in rows], limit
        )

    def lay_out(
        self, trainable: TrainableChatModel, data: ChatData, rows: list[TokenizedRow], limit: int
    ) -> list[ChatBatch]:
        """Any rows as batches, with the method's virtual tokens before each."""
        prefix = trainable.prefix_length
        virtual = trainable.prompt_length
        few = data.packed and (
            flex_attention.uses_flex_attention(trainable.base) or trainable.base.device.type == "cuda"
        )  # a GPU's libraries plan anew for each width, at 0.1 s
        edges = few and trainable.use_cu_seqlens
        batches = (
            pack_rows(rows, limit, virtual, allow_shorter=edges)
            if few
            else [(lines, None, 0) for lines in bin_pack(rows, limit, virtual, data.packed)]
        )
        return [
            make_batch(lines, virtual, prefix, width=width, with_cu_seqlens=edges, max_line_width=widest)
            for lines, width, widest in batches
        ]

    def loss(self, trainable: TrainableChatModel, batch: ChatBatch) -> LossSum:
        return LossSum(self.losses(trainable, batch).sum(), len(batch.labels))

    def losses(self, trainable: TrainableChatModel, batch: ChatBatch) -> torch.Tensor:
        """Nats of each supervised token, (N,)."""
        hidden = graphed_forward.hidden_states(trainable, batch)
        return token_losses(
            trainable.base,
            hidden.flatten(0, 1).index_select(0, batch.label_positions),
            batch.labels,
            trainable.loss_chunk,
        )

    def validate(
        self, trainable: TrainableChatModel, data: ChatData, recipe: ChatRecipe
    ) -> dict[str, float]:
        most = recipe.budget.validation_rows
        rows = self.row_losses(
            trainable, data, "validation", recipe.budget.micro_batch_tokens, most
        )
        return {"loss": sum(row[0] for row in rows) / sum(row[1] for row in rows)}

    def row_losses(
        self,
        trainable: TrainableChatModel,
        data: ChatData,
        split: str,
        limit: int,
        most: int | None = None,
    ) -> list[list[float]]:
        """[nats, supervised tokens, answer bytes] of each row of a split."""
        chosen = list(range(min(most or data.size(split), data.size(split))))
        sums = self.sums(trainable, self.collate(trainable, data, split, chosen, limit))
        return [[*sums[i], data.store.answer_bytes(split, i)] for i in chosen]

    def sums(
        self, trainable: TrainableChatModel, batches: list[ChatBatch]
    ) -> dict[int, list[float]]:
        """[nats, supervised tokens] of each row, by its index."""
        sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0])
        for batch in batches:
            losses = self.losses(trainable, batch.to(trainable.base.device)).cpu()
            for row, nats in zip(batch.label_rows.tolist(), losses.tolist(), strict=True):
                sums[row][0] += nats
                sums[row][1] += 1
        return sums

    def sample(
        self, trainable: TrainableChatModel, data: ChatData, recipe: ChatRecipe, final: bool
    ) -> list[dict]:
        asked = self.asked(data, recipe)
        if not final:
            asked = [a for a in asked if a["from"] == "questions"][
                : recipe.generation.samples_per_validation
            ]
        return self.answer(trainable, data, recipe, asked)

    def asked(self, data: ChatData, recipe: ChatRecipe) -> list[dict]:
        """Everything that every method answers: the designed questions, then the first test rows up to their last answer."""
        out = [question.sample() for question in data.questions]
        for i in range(min(recipe.generation.num_test_answers, data.size("test"))):
            turns = data.store.conversation("test", i)
            last = max(j for j, turn in enumerate(turns) if turn.role == "assistant")
            shown = [{"role": turn.role, "text": turn.text} for turn in turns[:last]]
            out.append(
                {
                    "id": f"test-{i:04d}",
                    "from": "test",
                    "ability": None,
                    "turns": shown,
                    "reference": turns[last].text,
                    "good": None,
                }
            )
        return out

    def answer(
        self,
        trainable: TrainableChatModel,
        data: ChatData,
        recipe: ChatRecipe,
        asked: list[dict],
        most: int | None = None,
    ) -> list[dict]:
        """`asked` with outputs (of at most `most` tokens; default: the recipe's), checks and scores."""
        if not asked:
            return []
        prompts = [
            data.template.encode_prompt(
                [chat_template.Turn(t["role"], t["text"]) for t in a["turns"]]
            )
            for a in asked
        ]
        settings = recipe.generation
        answers = generation.generate(
            trainable,
            prompts,
            set(data.template.stop_ids),
            most or settings.max_new_tokens,
            settings.batch_rows,
        )
        by_id = {question.id: question for question in data.questions}
        out = []
        for a, answer in zip(asked, answers, strict=True):
            text = data.tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
            question = a["turns"][-1]["text"]
            expected = (
                questions.expected_script(by_id[a["id"]])
                if a["id"] in by_id
                else ("en" if english_fraction(a["reference"]) > 0.5 else "fa")
            )
            checks = questions.check(by_id[a["id"]], text) if a["id"] in by_id else {}
            scores = text_metrics.score(text, question, a["reference"], expected)
            out.append(
                {
                    **a,
                    "output": text,
                    "finished": answer.finished,
                    "tokens": len(answer.ids),
                    "checks": checks,
                    "scores": scores,
                }
            )
        return out

    def evaluate(
        self,
        trainable: TrainableChatModel,
        data: ChatData,
        recipe: ChatRecipe,
        folder: Path,
        ledger: Ledger,
    ) -> dict:
        if trainable.graphed_forward is not None:
            trainable.graphed_forward.clear()
        with ledger.phase("evaluate"):
            rows = self.row_losses(trainable, data, "test", recipe.budget.micro_batch_tokens)
            kept = forgetting.measure(
                data.forgetting,
                lambda plain: self.nats(trainable, data, plain, recipe.budget.micro_batch_tokens),
            )
        with ledger.phase("generate"):
            samples = self.sample(trainable, data, recipe, final=True)
            read = self.read(trainable, data, recipe)
        write_jsonl(folder / "samples.jsonl", samples + read)
        nats, tokens, size = (sum(column) for column in zip(*rows, strict=True))
        asked = [s for s in samples if s["from"] == "questions"]
        abilities = dict.fromkeys(s["ability"] for s in asked)
        return {
            "split": "test",
            "loss": nats / tokens,
            "perplexity": math.exp(min(nats / tokens, 700)),
            "bits_per_byte": nats / math.log(2) / size,
            "rows": len(rows),
            "row_losses": rows,
            "generation": {
                "test": text_metrics.aggregate([s for s in samples if s["from"] == "test"]),
                "questions": text_metrics.aggregate(asked),
            },
            "abilities": {
                ability: text_metrics.aggregate([s for s in asked if s["ability"] == ability])
                for ability in abilities
            },
            **({"forgetting": kept} if kept else {}),
            **(
                {"reading": reading_comprehension.aggregate([s["scores"] for s in read])}
                if read
                else {}
            ),
        }

    def nats(
        self, trainable: TrainableChatModel, data: ChatData, rows: list[TokenizedRow], limit: int
    ) -> list[float]:
        """The summed loss of each of the rows, which are numbered from 0."""
        sums = self.sums(trainable, self.lay_out(trainable, data, rows, limit))
        return [sums[row.index][0] for row in rows]

    def read(self, trainable: TrainableChatModel, data: ChatData, recipe: ChatRecipe) -> list[dict]:
        """Reading comprehension: the questions answered, with exact match and F1 among their scores."""
        if not data.reading:
            return []
        answered = self.answer(trainable, data, recipe, data.reading, recipe.reading.max_new_tokens)
        for sample in answered:
            sample["scores"] |= reading_comprehension.score(
                sample["output"], sample["reference"], recipe.reading.unanswerable
            )
        return answered

    def summary(self, metrics: dict) -> dict[str, Any]:
        """The figures of one run that the comparison table shows."""
        test, designed = metrics["generation"]["test"], metrics["generation"]["questions"]
        figures = {name: metrics[name] for name in ("loss", "perplexity", "bits_per_byte")}
        figures |= {
            name: test[name]
            for name in (
                "chrf",
                "rouge_l",
                "repetition",
                "wrong_script",
                "unfinished",
                "prompt_copy",
                "answer_words",
            )
        }
        figures["wrong_script"] = text_metrics.weighted_mean([test, designed], "wrong_script")
        figures["checks_passed"] = designed["checks_passed"]
        figures |= {
            f"{language}_bits_per_byte": found["bits_per_byte"]
            for language, found in metrics.get("forgetting", {}).items()
        }
        return figures | {
            f"reading_{name}": metrics["reading"][name]
            for name in ("exact_match", "f1")
            if "reading" in metrics
        }

    def flops_per_token(
        self, trainable: TrainableChatModel, data: ChatData, recipe: ChatRecipe
    ) -> float:
        """Model FLOPs of training per real token of the recipe's rows."""
        lengths, supervised = (
            data.store.lengths("train"),
            data.store.column("train", "answer_tokens"),
        )
        share = float(supervised.sum() / lengths.sum())
        a_pass = min(
            recipe.budget.micro_batch_tokens, recipe.budget.batch_rows * float(lengths.mean())
        )
        return flops.flops_per_token(flops.count_flops(trainable), trainable, lengths, share, a_pass)

    def weights(self, trainable: TrainableChatModel) -> dict[str, torch.Tensor]:
        return {name: parameter.data for name, parameter in trainable.trainable().items()}

    def code_paths(self, trainable: TrainableChatModel, data: ChatData) -> dict[str, str]:
        """Which code ran, for the ledger."""
        layers = (
            "compiled"
            if compile_layers.is_compiled(trainable.base)
            else "lightweight adapters"
            if lightweight_adapters.has_lightweight_adapters(trainable.base)
            else "plain"
        )
        layers += ", fused LoRA" * fused_lora.has_fused_lora(
            trainable.base
        ) + ", fused MLP" * fused_mlp.has_fused_mlp(trainable.base)
        if trainable.graphed_forward is not None and (trainable.graphed_forward.num_captured or trainable.graphed_forward.failure_reason):
            layers += f", {trainable.graphed_forward.failure_reason or 'CUDA graphs'}"
        weights = {"weights": "4 bits (NF4)"} if quantization.is_quantized(trainable.base) else {}
        attention = (
            "FlashAttention 4" if trainable.use_cu_seqlens else trainable.base.config._attn_implementation
        )
        return {
            "attention": attention,
            "layout": "packed" if data.packed else "padded",
            "layers": layers,
            **weights,
        }

    def trained_tensors(self, trainable: TrainableChatModel) -> list[dict]:
        return model_card.trained_tensors(trainable)


def uses_flash_attention(trainable: TrainableChatModel, recipe: ChatRecipe) -> bool:
    """Whether FlashAttention 4 takes the training passes. Raises `UserError` where the recipe asks for it and it cannot."""
    model, prefix = trainable.base, trainable.prefix_length
    if recipe.attention not in ("auto", "flash") or not flex_attention.uses_flex_attention(model):
        return False
    why = flash_attention.unavailable_reason(
        model.config, model.dtype, model.device, recipe.data.max_length + trainable.num_virtual_tokens, prefix
    )
    if why and recipe.attention == "flash" and not prefix:
        raise UserError(why, location="attention: flash", hint="attention: auto takes what there is")
    return not why


def require_unchanged(folder: StudyDir, extra: dict[str, dict]) -> None:
    """Refuses to go on when what the finished methods were measured on has changed. Raises `UserError`."""
    before = folder.read_json("data.json") or {}
    for name, described in extra.items():
        if before.get(name, described) != described:
            raise UserError(
                f"the text of `{name}` changed since this study began",
                location=str(folder.path),
                hint="bring the old text back, or start a new study with --out",
            )


def written(source: str | list[str] | Sources) -> str:
    """A source in one line."""
    if isinstance(source, Sources):
        return ", ".join(f"{split}: {one}" for split, one in source.model_dump().items())
    return source if isinstance(source, str) else ", ".join(source)


def resolve_samples(name):
    """A path or paths, where `samples:NAME` is a file that tarazu ships."""
    if isinstance(name, dict):
        return {split: resolve_samples(one) for split, one in name.items()}
    if isinstance(name, list):
        return [resolve_samples(one) for one in name]
    if name.startswith("samples:"):
        return str(Path(tarazu.__file__).parent / "samples" / name.removeprefix("samples:"))
    return name
