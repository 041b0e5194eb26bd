"""Generate answers in batches with tarazu, and one by one with transformers' `generate`.

    python -m benchmarks.generation                                    # Gemma 3 270M, questions
    python -m benchmarks.generation --shape gemma-2-2b --prompts 64    # random weights and prompts

Both are greedy, with the same weights in the same process, in turns. In float32 the tokens must be
equal, or the benchmark fails. In bfloat16 two tokens may be equally likely within rounding, so the
record holds the fraction of equal answers.
"""

from __future__ import annotations

from benchmarks import common  # first: its clock starts at its import

# isort: split

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import shapes

if TYPE_CHECKING:
    import torch

# What transformers itself chooses: SDPA does not cap attention scores, as Gemma 2 needs.
PEER_ATTENTION = {"gemma2": "eager"}
OURS, PEER = "tarazu", "transformers generate"


@dataclass
class Job:
    """What both generate.

    Args:
        name: the model's name in the record.
        model: the causal LM of transformers.
        prompts: token ids of each prompt.
        stop_ids: token ids that end an answer.
        max_new_tokens: maximum length of an answer.
        batch_rows: prompts in a batch of tarazu.
    """

    name: str
    model: Any
    prompts: list[list[int]]
    stop_ids: set[int]
    max_new_tokens: int
    batch_rows: int


def job_of_model(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Job:
    """A model by its name or folder, with the designed questions in its own template."""
    from tarazu.chat.data import chat_template
    from tarazu.chat.evaluation import questions
    from tarazu.chat.model import loading
    from tarazu.chat.prepared_data import resolve_samples

    tokenizer = loading.load_tokenizer(args.model)
    template = chat_template.select_template(tokenizer, loading.model_type(args.model))
    designed = questions.load(resolve_samples("samples:questions_fa.jsonl"))[: args.prompts]
    prompts = [
        template.encode_prompt(
            [chat_template.Turn(turn["role"], turn["text"]) for turn in question.sample()["turns"]]
        )
        for question in designed
    ]
    model = loading.load_model(args.model, None, dtype, device)
    return Job(
        args.model, model, prompts, set(template.stop_ids), args.max_new_tokens, args.batch_rows
    )


def job_of_shape(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Job:
    """A shape with random weights, with the prompts of random rows. No token ends an answer."""
    from tarazu.chat.model import loading

    model_type = shapes.SHAPES[args.shape]().model_type
    attention = loading.pick_attention(model_type, "auto", device)
    model = shapes.build(args.shape, str(device), attention, dtype).eval()
    rows = shapes.rows(args.prompts, args.seed, model.config.vocab_size, args.max_length)
    prompts = [row.ids[~row.supervised].tolist() for row in rows]
    return Job(args.shape, model, prompts, set(), args.max_new_tokens, args.batch_rows)


def generate_ours(job: Job) -> list[list[int]]:
    """Token ids of tarazu's answers, without their end-of-turn token."""
    from tarazu.chat.evaluation.generation import generate
    from tarazu.chat.model.trainable import TrainableChatModel

    model = TrainableChatModel(job.model, frozenset(), base=job.model)
    answers = generate(model, job.prompts, job.stop_ids, job.max_new_tokens, job.batch_rows)
    return [answer.ids for answer in answers]


def generate_with_transformers(job: Job) -> list[list[int]]:
    """Token ids of the answers of transformers, one prompt at a time, with its own attention."""
    import torch

    attention = job.model.config._attn_implementation
    job.model.set_attn_implementation(PEER_ATTENTION.get(job.model.config.model_type, "sdpa"))
    if job.stop_ids:
        end: dict[str, Any] = {"eos_token_id": sorted(job.stop_ids)}
    else:
        end = {"min_new_tokens": job.max_new_tokens}
    answers = []
    for prompt in job.prompts:
        ids = torch.tensor([prompt], device=job.model.device)  # (1, T)
        output = job.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            top_k=None,
            top_p=None,
            repetition_penalty=1.0,
            max_new_tokens=job.max_new_tokens,
            pad_token_id=0,
            **end,
        )
        answer = output[0, len(prompt) :].tolist()
        answers.append(answer[:-1] if answer and answer[-1] in job.stop_ids else answer)
    job.model.set_attn_implementation(attention)
    return answers


def measure(job: Job, repeats: int) -> list[dict[str, Any]]:
    """Time both in turns.

    Args:
        job: what both generate.
        repeats: times that each one runs.

    Returns:
        A record of tarazu, with the ratio of speeds and the fraction of equal answers, and a record
        of the peer.
    """
    answers: dict[str, list[list[int]]] = {}

    def run_ours() -> None:
        answers[OURS] = generate_ours(job)

    def run_peer() -> None:
        answers[PEER] = generate_with_transformers(job)

    # Untimed: the first use of a library includes its setup.
    short_job = replace(job, prompts=job.prompts[:2], max_new_tokens=min(8, job.max_new_tokens))
    generate_ours(short_job)
    generate_with_transformers(short_job)
    seconds = common.alternate({OURS: run_ours, PEER: run_peer}, repeats)
    dtype = str(job.model.dtype).removeprefix("torch.")
    settings = {OURS: f"batches of {job.batch_rows}", PEER: "row by row"}
    records = []
    for who in (OURS, PEER):
        lengths = [len(answer) for answer in answers[who]]
        records.append(
            common.record(
                "generation",
                who,
                f"{settings[who]}, {dtype}",
                job.name,
                group=f"{len(job.prompts)} prompts, {job.max_new_tokens} new tokens",
                tokens_per_second=common.spread([sum(lengths) / s for s in seconds[who]]),
                seconds=common.spread(seconds[who]),
                tokens=lengths,
            )
        )
    equal = [a == b for a, b in zip(answers[OURS], answers[PEER], strict=True)]
    ratios = [peer / ours for ours, peer in zip(seconds[OURS], seconds[PEER], strict=True)]
    records[0] |= {
        "ratio": common.spread(ratios),
        "equal_answers": sum(equal) / len(equal),
        "peak_gib": common.peak_gib(),
    }
    return records


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="gemma-3-270m", help="a name or folder as in a recipe")
    add("--shape", choices=list(shapes.SHAPES), help="random weights instead of --model")
    add("--prompts", type=int, default=16, help="number of prompts")
    add(
        "--max-length",
        type=int,
        default=1024,
        help="maximum length of the random rows whose prompts are used",
    )
    add("--max-new-tokens", type=int, default=24, help="maximum number of new tokens")
    add("--batch-rows", type=int, default=16, help="prompts in a batch of tarazu")
    add("--repeats", type=int, default=3, help="times that each contender runs")
    add("--float32", action="store_true", help="on a GPU too; the tokens must be equal then")
    add("--seed", type=int, default=0, help="seed of the random prompts")
    add("--out", type=Path, help="the JSON file to write")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact = args.float32 or device.type == "cpu"
    make_job = job_of_shape if args.shape else job_of_model
    job = make_job(args, device, torch.float32 if exact else torch.bfloat16)
    records = measure(job, args.repeats)
    out = args.out or common.RESULTS / f"generation-{device.type}-{Path(job.name).name}.json"
    common.write(out, records)
    ratio, equal_answers = records[0]["ratio"]["median"], records[0]["equal_answers"]
    print(f"{out}: {ratio:.2f} times, {equal_answers:.0%} of the answers equal")
    if exact and equal_answers < 1:
        raise SystemExit("in float32 the answers must be equal")


if __name__ == "__main__":
    main()
