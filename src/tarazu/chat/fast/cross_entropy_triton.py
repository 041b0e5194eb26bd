"""The losses of many rows of logits and their slopes, in one GPU kernel that reads the logits
twice and writes once, in place.

With a quarter of a million words the logits are the largest thing in a step, so what counts is how
often they are read. A program goes along one row: first it sums the exponentials, beside the
largest number so far (online softmax, Milakov and Gimelshein 2018, arXiv:1805.02867) or without it
where scores are capped and cannot overflow; then it turns each logit into its slope where it
stands. `loss.cross_entropy_with_grad` is the plain path, which tests compare with.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK, WARPS = (
    4096,
    8,
)  # of 2,048 to 16,384 and 4 to 16 the fastest with 256,000 and with 128,256 words on an H100: 2.6 and 1.9 times the compiler's
MOST_CAPPED = 60.0  # e^60 times any vocabulary is a float32
TANH = (7, 5)  # the first GPUs that have `tanh.approx`
LOG2E = tl.constexpr(1.4426950408889634)


def cross_entropy_with_grad(
    logits: torch.Tensor, labels: torch.Tensor, softcap: float | None, _sloped: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `loss.cross_entropy_with_grad`, for contiguous logits (N, V) in 16 bits, N > 0, whose
    memory is used for their gradient."""
    losses = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
    _rows[(len(labels),)](
        logits,
        labels,
        losses,
        logits.shape[1],
        softcap or 1.0,
        CAPPED=bool(softcap),
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return losses, logits


def is_supported(logits: torch.Tensor, softcap: float | None) -> bool:
    """Whether the kernel is for these logits: in 16 bits, as its tanh is made for them, and with a
    cap that cannot overflow."""
    capped = (
        not softcap
        or softcap <= MOST_CAPPED
        and torch.cuda.get_device_capability(logits.device) >= TANH
    )
    return logits.dtype in (torch.bfloat16, torch.float16) and logits.is_contiguous() and capped


@triton.jit
def _tanh(x):
    """`tanh.approx.f32`, as in `fast_tanh.py`."""
    return tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _rows(logits, labels, losses, words, cap, CAPPED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * words
    label, place = tl.load(labels + row), tl.arange(0, BLOCK)
    total, top = tl.zeros([BLOCK], tl.float32), tl.full([BLOCK], -1e30, tl.float32)
    for start in range(0, words, BLOCK):
        inside = start + place < words
        x = tl.load(logits + start + place, mask=inside, other=float("-inf")).to(tl.float32)
        if CAPPED:
            total += tl.where(inside, tl.exp2(_tanh(x / cap) * (cap * LOG2E)), 0.0)
        else:
            higher = tl.maximum(top, x)
            total = total * tl.exp2((top - higher) * LOG2E) + tl.exp2((x - higher) * LOG2E)
            top = higher
    chosen = tl.load(logits + label).to(tl.float32)
    if CAPPED:
        chosen = _tanh(chosen / cap) * cap
        logsum = tl.log(tl.sum(total, 0))
    else:
        highest = tl.max(top, 0)
        logsum = tl.log(tl.sum(total * tl.exp2((top - highest) * LOG2E), 0)) + highest
    tl.store(losses + row, logsum - chosen)
    tl.debug_barrier()  # the label's logit is read by all before it is written over
    for start in range(0, words, BLOCK):
        inside = start + place < words
        x = tl.load(logits + start + place, mask=inside, other=0.0).to(tl.float32)
        share = _tanh(x / cap) if CAPPED else x
        slope = tl.exp2(((share * cap if CAPPED else x) - logsum) * LOG2E) - tl.where(
            start + place == label, 1.0, 0.0
        )
        if CAPPED:
            slope *= 1 - share * share
        tl.store(logits + start + place, slope.to(logits.dtype.element_ty), mask=inside)
