"""Answers written in batches by tarazu, and one prompt at a time by transformers' `generate`: the same tokens, compared.

    python -m benchmarks.generation                                    # the embedded Gemma 3 270M, the designed questions
    python -m benchmarks.generation --shape gemma-2-2b --prompts 64    # random weights and prompts

Both are greedy, with the same weights in the same process, in turns. In float32 the tokens must be equal, or it fails; in
bfloat16 two tokens may be equally likely within rounding, and the share of equal answers is told beside the ratio.
"""

from __future__ import annotations

from benchmarks import common  # first: its clock starts at its import

# isort: split

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import shapes

PEER_ATTENTION = {
    "gemma2": "eager"
}  # what transformers itself takes: Gemma 2's softcapping has no SDPA


@dataclass
class Job:
    """What both are asked to do."""

    name: str
    model: Any
    prompts: list[list[int]]
    stop: set[int]
    most: int
    batch_rows: int


def named(args: argparse.Namespace, device: Any, dtype: Any) -> Job:
    """A model by name or folder, and the designed questions in its own template."""
    from tarazu.chat.data import chat_template
    from tarazu.chat.evaluation import questions
    from tarazu.chat.model import loading
    from tarazu.chat.prepared_data import resolve_samples

    words = loading.load_tokenizer(args.model)
    chosen = chat_template.select_template(words, loading.model_type(args.model))
    asked = questions.load(resolve_samples("samples:questions_fa.jsonl"))[: args.prompts]
    prompts = [
        chosen.encode_prompt(
            [chat_template.Turn(t["role"], t["text"]) for t in one.sample()["turns"]]
        )
        for one in asked
    ]
    model = loading.load_model(args.model, None, dtype, device)
    return Job(args.model, model, prompts, set(chosen.stop_ids), args.most, args.batch_rows)


def random(args: argparse.Namespace, device: Any, dtype: Any) -> Job:
    """A random model of one of the shapes, and the prompts of random rows; nothing ends an answer early."""
    from tarazu.chat.model import loading

    model_type = shapes.SHAPES[args.shape]().model_type
    model = shapes.build(
        args.shape, str(device), loading.pick_attention(model_type, "auto", device), dtype
    ).eval()
    rows = shapes.rows(args.prompts, args.seed, model.config.vocab_size, args.longest)
    return Job(
        args.shape,
        model,
        [row.ids[~row.supervised].tolist() for row in rows],
        set(),
        args.most,
        args.batch_rows,
    )


def ours(job: Job) -> list[list[int]]:
    """Token ids of the answers, with their end-of-turn left out."""
    from tarazu.chat.evaluation.generation import generate
    from tarazu.chat.model.trainable import TrainableChatModel

    answers = generate(
        TrainableChatModel(job.model, frozenset(), base=job.model),
        job.prompts,
        job.stop,
        job.most,
        job.batch_rows,
    )
    return [answer.ids for answer in answers]


def theirs(job: Job) -> list[list[int]]:
    """The same by transformers, row by row, with the attention that it would take itself."""
    import torch

    own = job.model.config._attn_implementation
    job.model.set_attn_implementation(PEER_ATTENTION.get(job.model.config.model_type, "sdpa"))
    end = {"eos_token_id": sorted(job.stop)} if job.stop else {"min_new_tokens": job.most}
    out = []
    for prompt in job.prompts:
        ids = torch.tensor([prompt], device=job.model.device)
        made = job.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1, top_k=None, top_p=None, repetition_penalty=1.0,
            max_new_tokens=job.most, pad_token_id=0, **end,
        )  # fmt: skip
        written = made[0, len(prompt) :].tolist()
        out.append(written[:-1] if written and written[-1] in job.stop else written)
    job.model.set_attn_implementation(own)
    return out


def measure(job: Job, repeats: int) -> list[dict]:
    """One record of ours and one of the peer's; ours holds the ratio and the share of equal answers."""
    answers: dict[str, list[list[int]]] = {}
    work = {
        "tarazu": lambda: answers.__setitem__("tarazu", ours(job)),
        "transformers generate": lambda: answers.__setitem__("transformers generate", theirs(job)),
    }
    short = replace(job, prompts=job.prompts[:2], most=min(8, job.most))
    ours(short), theirs(short)  # the first use of a library is not its speed
    seconds = common.alternate(work, repeats)
    (own, peer), equal = answers.values(), [a == b for a, b in zip(*answers.values(), strict=True)]
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    dtype = str(job.model.dtype).removeprefix("torch.")
    settings = {"tarazu": f"batches of {job.batch_rows}", "transformers generate": "row by row"}
    records = [
        common.record(
            "generation",
            name,
            f"{settings[name]}, {dtype}",
            job.name,
            group=f"{len(job.prompts)} prompts, {job.most} new tokens",
            tokens_per_second=common.spread(
                [sum(map(len, answers[name])) / s for s in seconds[name]]
            ),
            seconds=common.spread(seconds[name]),
        )  # fmt: skip
        for name in work
    ]
    records[0] |= {
        "ratio": common.spread(ratios),
        "equal_answers": sum(equal) / len(equal),
        "peak_gib": common.peak_gib(),
        "tokens": [len(a) for a in own],
    }
    records[1] |= {"tokens": [len(a) for a in peer]}
    return records


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--model", default="gemma-3-270m", help="a name or folder as in a recipe")
    asked.add_argument("--shape", choices=list(shapes.SHAPES), help="random weights instead")
    asked.add_argument("--prompts", type=int, default=16)
    asked.add_argument(
        "--longest", type=int, default=1024, help="tokens of the random rows whose prompts are used"
    )
    asked.add_argument("--most", type=int, default=24, help="new tokens")
    asked.add_argument("--batch-rows", type=int, default=16)
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument(
        "--float32", action="store_true", help="on a GPU too: the tokens must then be equal"
    )
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--out", type=Path)
    args = asked.parse_args()
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact = args.float32 or device.type == "cpu"
    job = (random if args.shape else named)(
        args, device, torch.float32 if exact else torch.bfloat16
    )
    records = measure(job, args.repeats)
    out = args.out or common.RESULTS / f"generation-{device.type}-{Path(job.name).name}.json"
    common.write(out, records)
    print(
        f"{out}: {records[0]['ratio']['median']:.2f} times, {records[0]['equal_answers']:.0%} of the answers equal"
    )
    if exact and records[0]["equal_answers"] < 1:
        raise SystemExit("in float32 the answers must be equal")


if __name__ == "__main__":
    main()
