"""A gated MLP's activation and its slopes on a GPU, with the thin products of the adapters around
it done on the way.

Activations and slopes of an MLP are the largest matrices of a layer. Each thin product that stands
beside one, (places, width) with a few columns, costs a reading of it, and storing act(gate) up for
an adapter's gradient costs as much memory as attention does. Here the kernel that makes such a
matrix multiplies its tiles while it holds them, and makes act(gate) up once more from what is kept
anyhow. Above rank 32 the slopes' products with B are made beside it after all. `gated.py` has the
plain path, which tests compare with.

Sums over a row go through additions of many programs to one place: their order, and so the last
place of a number, changes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# The fastest of a dozen on an H100 between the products that they stand between: there the clock
# is lower than where a kernel runs alone.
ROWS, COLUMNS, WARPS, STAGES = 32, 128, 4, 3  # of `_forward`
BWD_ROWS, BWD_COLUMNS, BWD_WARPS, BWD_STAGES, BWD_PART = (
    (64, 32),
    64,
    4,
    3,
    512,
)  # of `_backward`: rows up to `NARROWEST` columns and beyond; the last: places that a program goes along
MOST_ADDED = 32  # columns up to which `_backward` makes d ups as well: with more, what each of the programs adds to them costs more than another reading
NARROWEST = 16  # columns that the GPU multiplies with at least


def columns(rank: int) -> int:
    """What `rank` columns are filled up to."""
    return max(NARROWEST, triton.next_power_of_2(rank))


def forward(
    both: torch.Tensor, down: torch.Tensor, gelu: bool, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `gated.forward`."""
    (places, width), spare = (both.shape[0], both.shape[1] // 2), down.shape[0]
    made, thin = both.new_empty(places, width + spare), both.new_empty(places, spare)
    _forward[(triton.cdiv(places, ROWS),)](
        both, down, made, thin, places, width, down.stride(0), rank, GELU=gelu, SPARE=spare, RANK=columns(rank), ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS, num_stages=STAGES
    )  # fmt: skip
    return made, thin


def backward(
    slope: torch.Tensor,
    both: torch.Tensor,
    thin_slope: torch.Tensor,
    thin_input: torch.Tensor,
    ups: torch.Tensor,
    gelu: bool,
    ranks: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `gated.backward`."""
    (places, width), spare = slope.shape, ups.shape[1]
    made, thin = (
        slope.new_empty(places, 2 * width + spare),
        slope.new_empty(places, spare, dtype=torch.float32),
    )
    gates, others = (slope.new_empty(width, rank, dtype=torch.float32) for rank in ranks[:2])
    downs = slope.new_empty(ranks[2], width, dtype=torch.float32)
    rank = columns(max(ranks[:2]))
    torch._foreach_zero_([thin, gates, others, downs])
    _backward[(triton.cdiv(width, BWD_COLUMNS), triton.cdiv(places, BWD_PART))](
        slope, both, thin_slope, thin_input, ups, made, thin, gates, others, downs, places, width, thin_slope.stride(0), thin_input.stride(0), ups.stride(0), *ranks,
        GELU=gelu, SPARE=spare, RANK=rank, DOWN=columns(ranks[2]), ADDS_UPS=rank <= MOST_ADDED, ROWS=BWD_ROWS[rank > NARROWEST], COLUMNS=BWD_COLUMNS, PART=BWD_PART,
        num_warps=BWD_WARPS, num_stages=BWD_STAGES,
    )  # fmt: skip
    if rank <= MOST_ADDED:
        made[:, 2 * width :].copy_(thin)
    else:
        torch.mm(made[:, : 2 * width], ups, out=made[:, 2 * width :])
    return made, gates, others, downs


@triton.jit
def _share(x):
    """1 / (1 + 2^x), to two units in the last place of float32: a division costs as much as the
    rest of an activation."""
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1; add.f32 $0, $0, 0f3F800000; rcp.approx.ftz.f32 $0, $0;",
        "=f,f",
        [x],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _activation(x, GELU: tl.constexpr):
    """Both are x sigmoid(m(x)): the number, and its derivative."""
    if GELU:  # 0.5 x (1 + tanh z) = x sigmoid(2 z)
        square = x * x
        inner, inner_slope = (
            x * (1.5957691216057308 + 0.07135481282553926 * square),
            1.5957691216057308 + 0.21406443847661778 * square,
        )
    else:
        inner, inner_slope = x, 1.0
    share = _share(inner * -1.4426950408889634)
    value = x * share
    return value, share + value * (1.0 - share) * inner_slope


@triton.jit
def _materialize(x):
    """x (16 bits), as it is: Triton would make anew, in the threads' order for each product, all
    that x came from."""
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2
    )


@triton.jit
def _forward(
    both,
    down,
    made,
    thin,
    places,
    width,
    down_stride,
    rank,
    GELU: tl.constexpr,
    SPARE: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program: some rows, from one end to the other. Long addresses are single numbers, those
    within a tile are short."""
    first, row, place, factor = (
        tl.program_id(0) * ROWS,
        tl.arange(0, ROWS)[:, None],
        tl.arange(0, COLUMNS),
        tl.arange(0, RANK),
    )
    here = row < places - first
    dtype = made.dtype.element_ty
    both += first.to(tl.int64) * (2 * width)
    made += first.to(tl.int64) * (width + SPARE)
    thin += first.to(tl.int64) * SPARE
    total = tl.zeros([ROWS, RANK], tl.float32)
    for start in range(0, width, COLUMNS):
        inside, within = place[None, :] < width - start, place[:, None] < width - start
        gate = tl.load(
            both + start + row * (2 * width) + place[None, :], mask=here & inside, other=0.0
        ).to(tl.float32)
        up = tl.load(
            both + width + start + row * (2 * width) + place[None, :], mask=here & inside, other=0.0
        ).to(tl.float32)
        value, _ = _activation(gate, GELU)
        hidden = _materialize((value * up).to(dtype))
        tl.store(made + start + row * (width + SPARE) + place[None, :], hidden, mask=here & inside)
        factors = tl.load(
            down + start + factor[None, :] * down_stride + place[:, None],
            mask=(factor < rank)[None, :] & within,
            other=0.0,
        )
        total = tl.dot(hidden, factors, total)
    tl.store(made + width + row * (width + SPARE) + factor[None, :], total.to(dtype), mask=here)
    tl.store(thin + row * SPARE + factor[None, :], total.to(dtype), mask=here)
    rest, nothing = tl.arange(0, 16)[None, :], tl.zeros([ROWS, 16], dtype)
    for start in tl.static_range(RANK, SPARE, 16):
        tl.store(made + width + start + row * (width + SPARE) + rest, nothing, mask=here)
        tl.store(thin + start + row * SPARE + rest, nothing, mask=here)


@triton.jit
def _backward(
    slope, both, thin_slope, thin_input, ups, made, thin, gates, others, downs, places, width, thin_slope_stride, thin_input_stride, ups_stride, gate_rank, up_rank, down_rank,
    GELU: tl.constexpr, SPARE: tl.constexpr, RANK: tl.constexpr, DOWN: tl.constexpr, ADDS_UPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """A program: some columns, along some of the rows; sums over rows stay with it, those over
    columns (`ADDS_UPS`) are added to others'."""
    left, first = tl.program_id(0) * COLUMNS, tl.program_id(1) * PART
    row, column, place = (
        tl.arange(0, ROWS)[:, None],
        tl.arange(0, COLUMNS)[None, :],
        tl.arange(0, COLUMNS)[:, None],
    )
    factor, down_factor = tl.arange(0, RANK)[None, :], tl.arange(0, DOWN)[None, :]
    here, within = column < width - left, place < width - left
    is_gate, is_up, is_down = factor < gate_rank, factor < up_rank, down_factor < down_rank
    dtype = made.dtype.element_ty
    if ADDS_UPS:
        ups += left.to(tl.int64) * ups_stride
        of_gate = tl.load(ups + place * ups_stride + factor, mask=within & is_gate, other=0.0)
        of_up = tl.load(
            ups + width.to(tl.int64) * ups_stride + gate_rank + place * ups_stride + factor,
            mask=within & is_up,
            other=0.0,
        )
    slope += first.to(tl.int64) * width + left
    both += first.to(tl.int64) * (2 * width) + left
    made += first.to(tl.int64) * (2 * width + SPARE) + left
    thin_slope += first.to(tl.int64) * thin_slope_stride
    thin_input += first.to(tl.int64) * thin_input_stride
    thin += first.to(tl.int64) * SPARE
    sum_gate, sum_up, sum_down = (
        tl.zeros([COLUMNS, RANK], tl.float32),
        tl.zeros([COLUMNS, RANK], tl.float32),
        tl.zeros([COLUMNS, DOWN], tl.float32),
    )
    for start in range(0, PART, ROWS):
        there = row < places - first - start
        inside = there & here
        above = tl.load(slope + row * width + column, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(both + row * (2 * width) + column, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(both + width + row * (2 * width) + column, mask=inside, other=0.0).to(
            tl.float32
        )
        inputs_gate = tl.load(
            thin_input + row * thin_input_stride + factor, mask=there & is_gate, other=0.0
        )
        inputs_up = tl.load(
            thin_input + gate_rank + row * thin_input_stride + factor, mask=there & is_up, other=0.0
        )
        slopes_down = tl.load(
            thin_slope + row * thin_slope_stride + down_factor, mask=there & is_down, other=0.0
        )
        value, steep = _activation(gate, GELU)
        into_gate, into_up, hidden = (
            _materialize((above * up * steep).to(dtype)),
            _materialize((above * value).to(dtype)),
            _materialize((value * up).to(dtype)),
        )
        tl.store(made + row * (2 * width + SPARE) + column, into_gate, mask=inside)
        tl.store(made + width + row * (2 * width + SPARE) + column, into_up, mask=inside)
        sum_gate = tl.dot(tl.trans(into_gate), inputs_gate, sum_gate)
        sum_up = tl.dot(tl.trans(into_up), inputs_up, sum_up)
        sum_down = tl.dot(tl.trans(hidden), slopes_down, sum_down)
        if ADDS_UPS:
            tl.atomic_add(
                thin + row * SPARE + factor,
                tl.dot(into_gate, of_gate),
                mask=there & is_gate,
                sem="relaxed",
            )
            tl.atomic_add(
                thin + gate_rank + row * SPARE + factor,
                tl.dot(into_up, of_up),
                mask=there & is_up,
                sem="relaxed",
            )
        slope += ROWS * width
        both += ROWS * 2 * width
        made += ROWS * (2 * width + SPARE)
        thin_slope += ROWS * thin_slope_stride
        thin_input += ROWS * thin_input_stride
        thin += ROWS * SPARE
    tl.atomic_add(
        gates + (left + place) * gate_rank + factor, sum_gate, mask=within & is_gate, sem="relaxed"
    )
    tl.atomic_add(
        others + (left + place) * up_rank + factor, sum_up, mask=within & is_up, sem="relaxed"
    )
    tl.atomic_add(
        downs + down_factor * width + left + place, sum_down, mask=within & is_down, sem="relaxed"
    )
