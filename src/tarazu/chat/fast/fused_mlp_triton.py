"""The kernels of `fused_mlp.py`: a gated activation and its low-rank products, and their gradients.

The activations of an MLP and their gradients are the largest matrices of a layer. Each low-rank
product with one, (rows, hidden) with a few columns, costs a reading of it. Keeping the gated
activation, act(gate) * up, for an adapter's gradient costs as much memory as attention does. Here
the kernel that makes such a matrix multiplies its tiles while it holds them, and the backward pass
recomputes the gated activation from gate and up, which are kept anyway. Above rank 32 the
gradient's product with B is a separate matrix product. `fused_mlp.py` has the plain path, with
which tests compare.

Sums over rows are atomic additions of many program instances: their order varies, and so may the
last bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Tile sizes: the fastest of a dozen on an H100, timed between the matrix products that they stand
# between (there the clock is lower than for a kernel alone).
ROWS, COLUMNS, WARPS, STAGES = 32, 128, 4, 3  # of `_forward`
BWD_ROWS = (64, 32)  # of `_backward`: up to `MIN_DOT_COLUMNS` columns of factors, and beyond
BWD_COLUMNS, BWD_WARPS, BWD_STAGES = 64, 4, 3
BWD_PART = 512  # rows that a program instance of `_backward` walks along
# Columns up to which `_backward` computes d B as well. With more, the atomic additions of all
# instances cost more than another reading.
MAX_ADDED_COLUMNS = 32
MIN_DOT_COLUMNS = 16  # the smallest side of a product on tensor cores


def padded_rank(rank: int) -> int:
    """Columns that `rank` columns are padded to: a power of two, at least `MIN_DOT_COLUMNS`."""
    return max(MIN_DOT_COLUMNS, triton.next_power_of_2(rank))


def forward(
    gate_up: torch.Tensor, lora_a: torch.Tensor, gelu: bool, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`fused_mlp._forward` on a GPU: gate_up (T, 2 hidden) and lora_a (spare, hidden)."""
    (num_rows, hidden_size), spare = (gate_up.shape[0], gate_up.shape[1] // 2), lora_a.shape[0]
    out = gate_up.new_empty(num_rows, hidden_size + spare)
    out_a = gate_up.new_empty(num_rows, spare)
    _forward[(triton.cdiv(num_rows, ROWS),)](
        gate_up, lora_a, out, out_a, num_rows, hidden_size, lora_a.stride(0), rank,
        GELU=gelu, SPARE=spare, RANK=padded_rank(rank), ROWS=ROWS, COLUMNS=COLUMNS,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return out, out_a


def backward(
    grad: torch.Tensor,
    gate_up: torch.Tensor,
    grad_a: torch.Tensor,
    input_a: torch.Tensor,
    lora_b: torch.Tensor,
    gelu: bool,
    ranks: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`fused_mlp._backward` on a GPU; shapes as there."""
    (num_rows, hidden_size), spare = grad.shape, lora_b.shape[1]
    out = grad.new_empty(num_rows, 2 * hidden_size + spare)
    out_b = grad.new_empty(num_rows, spare, dtype=torch.float32)
    grad_gate_b, grad_up_b = (
        grad.new_empty(hidden_size, rank, dtype=torch.float32) for rank in ranks[:2]
    )
    grad_down_a = grad.new_empty(ranks[2], hidden_size, dtype=torch.float32)
    rank = padded_rank(max(ranks[:2]))
    torch._foreach_zero_([out_b, grad_gate_b, grad_up_b, grad_down_a])  # instances add to them
    grid = (triton.cdiv(hidden_size, BWD_COLUMNS), triton.cdiv(num_rows, BWD_PART))
    _backward[grid](
        grad, gate_up, grad_a, input_a, lora_b, out, out_b, grad_gate_b, grad_up_b, grad_down_a,
        num_rows, hidden_size, grad_a.stride(0), input_a.stride(0), lora_b.stride(0), *ranks,
        GELU=gelu, SPARE=spare, RANK=rank, DOWN_RANK=padded_rank(ranks[2]),
        ADD_B=rank <= MAX_ADDED_COLUMNS, ROWS=BWD_ROWS[rank > MIN_DOT_COLUMNS],
        COLUMNS=BWD_COLUMNS, PART=BWD_PART, num_warps=BWD_WARPS, num_stages=BWD_STAGES,
    )  # fmt: skip
    if rank <= MAX_ADDED_COLUMNS:
        out[:, 2 * hidden_size :].copy_(out_b)
    else:
        torch.mm(out[:, : 2 * hidden_size], lora_b, out=out[:, 2 * hidden_size :])
    return out, grad_gate_b, grad_up_b, grad_down_a


@triton.jit
def _sigmoid_exp2(x):
    """1 / (1 + 2^x), to two units in the last place of float32.

    An exact division would cost as much as the rest of an activation.
    """
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
    """The activation and its derivative. Both SiLU and GELU are x sigmoid(m(x))."""
    if GELU:  # 0.5 x (1 + tanh z) = x sigmoid(2 z) with z = sqrt(2 / pi) (x + 0.044715 x^3)
        square = x * x
        inner, inner_grad = (
            x * (1.5957691216057308 + 0.07135481282553926 * square),
            1.5957691216057308 + 0.21406443847661778 * square,
        )
    else:
        inner, inner_grad = x, 1.0
    sigmoid = _sigmoid_exp2(inner * -1.4426950408889634)  # -log2(e): sigmoid(m) = 1 / (1 + e^-m)
    value = x * sigmoid
    return value, sigmoid + value * (1.0 - sigmoid) * inner_grad


@triton.jit
def _materialize(x):
    """x (16 bits), unchanged, as a barrier.

    Without it Triton recomputes all that x came from, in each product's own layout of threads.
    """
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2
    )


@triton.jit
def _forward(
    gate_up,
    lora_a,
    out,
    out_a,
    num_rows,
    hidden_size,
    lora_a_stride,
    rank,
    GELU: tl.constexpr,
    SPARE: tl.constexpr,
    RANK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """h = act(gate) * up into `out`, and h A' into `out` beside it and into `out_a`.

    A program instance owns ROWS rows and walks along them in tiles of (ROWS, COLUMNS).
    """
    first, row, column, factor = (
        tl.program_id(0) * ROWS,
        tl.arange(0, ROWS)[:, None],
        tl.arange(0, COLUMNS),
        tl.arange(0, RANK),
    )
    row_inside = row < num_rows - first
    dtype = out.dtype.element_ty
    # Move the pointers to the first row. Only this offset is 64-bit: within a tile 32 bits are
    # enough.
    gate_up += first.to(tl.int64) * (2 * hidden_size)
    out += first.to(tl.int64) * (hidden_size + SPARE)
    out_a += first.to(tl.int64) * SPARE
    total = tl.zeros([ROWS, RANK], tl.float32)  # h A' of these rows
    for start in range(0, hidden_size, COLUMNS):
        # Masks of the last tile, along rows of gate and up, and along columns of A transposed.
        inside, a_inside = (
            column[None, :] < hidden_size - start,
            column[:, None] < hidden_size - start,
        )
        gate = tl.load(
            gate_up + start + row * (2 * hidden_size) + column[None, :],
            mask=row_inside & inside,
            other=0.0,
        ).to(tl.float32)
        up = tl.load(
            gate_up + hidden_size + start + row * (2 * hidden_size) + column[None, :],
            mask=row_inside & inside,
            other=0.0,
        ).to(tl.float32)
        value, _ = _activation(gate, GELU)
        hidden = _materialize((value * up).to(dtype))
        tl.store(
            out + start + row * (hidden_size + SPARE) + column[None, :],
            hidden,
            mask=row_inside & inside,
        )
        # The tile of h is still in registers: multiply it with A' at once.
        factors = tl.load(
            lora_a + start + factor[None, :] * lora_a_stride + column[:, None],
            mask=(factor < rank)[None, :] & a_inside,
            other=0.0,
        )
        total = tl.dot(hidden, factors, total)
    tl.store(
        out + hidden_size + row * (hidden_size + SPARE) + factor[None, :],
        total.to(dtype),
        mask=row_inside,
    )
    tl.store(out_a + row * SPARE + factor[None, :], total.to(dtype), mask=row_inside)
    # The columns beyond the padded rank are zeros, 16 at a time.
    rest, zeros = tl.arange(0, 16)[None, :], tl.zeros([ROWS, 16], dtype)
    for start in tl.static_range(RANK, SPARE, 16):
        tl.store(
            out + hidden_size + start + row * (hidden_size + SPARE) + rest, zeros, mask=row_inside
        )
        tl.store(out_a + start + row * SPARE + rest, zeros, mask=row_inside)


@triton.jit
def _backward(
    grad, gate_up, grad_a, input_a, lora_b, out, out_b, grad_gate_b, grad_up_b, grad_down_a,
    num_rows, hidden_size, grad_a_stride, input_a_stride, lora_b_stride,
    gate_rank, up_rank, down_rank,
    GELU: tl.constexpr, SPARE: tl.constexpr, RANK: tl.constexpr, DOWN_RANK: tl.constexpr,
    ADD_B: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """d = [d gate, d up] into `out`, and the low-rank products with d and with h.

    A program instance owns COLUMNS columns of the hidden size and PART rows, which it walks along
    in tiles of (ROWS, COLUMNS). Sums over its rows stay in registers and are added to those of
    other instances at the end; d B, a sum over columns, is added for each tile (`ADD_B`).
    """
    left, first = tl.program_id(0) * COLUMNS, tl.program_id(1) * PART
    row, column, column_down = (
        tl.arange(0, ROWS)[:, None],
        tl.arange(0, COLUMNS)[None, :],
        tl.arange(0, COLUMNS)[:, None],
    )
    factor, down_factor = tl.arange(0, RANK)[None, :], tl.arange(0, DOWN_RANK)[None, :]
    column_inside, column_down_inside = (
        column < hidden_size - left,
        column_down < hidden_size - left,
    )
    is_gate, is_up, is_down = factor < gate_rank, factor < up_rank, down_factor < down_rank
    dtype = out.dtype.element_ty
    if ADD_B:  # this instance's rows of B of gate and of up stay in registers
        lora_b += left.to(tl.int64) * lora_b_stride
        gate_b = tl.load(
            lora_b + column_down * lora_b_stride + factor,
            mask=column_down_inside & is_gate,
            other=0.0,
        )
        up_b = tl.load(
            lora_b
            + hidden_size.to(tl.int64) * lora_b_stride
            + gate_rank
            + column_down * lora_b_stride
            + factor,
            mask=column_down_inside & is_up,
            other=0.0,
        )
    # Move the pointers to the first tile; only these offsets are 64-bit.
    grad += first.to(tl.int64) * hidden_size + left
    gate_up += first.to(tl.int64) * (2 * hidden_size) + left
    out += first.to(tl.int64) * (2 * hidden_size + SPARE) + left
    grad_a += first.to(tl.int64) * grad_a_stride
    input_a += first.to(tl.int64) * input_a_stride
    out_b += first.to(tl.int64) * SPARE
    sum_gate, sum_up, sum_down = (
        tl.zeros([COLUMNS, RANK], tl.float32),
        tl.zeros([COLUMNS, RANK], tl.float32),
        tl.zeros([COLUMNS, DOWN_RANK], tl.float32),
    )
    for start in range(0, PART, ROWS):
        row_inside = row < num_rows - first - start
        inside = row_inside & column_inside
        # Load one tile: the gradient of h, gate, up, and the low-rank rows.
        grad_hidden = tl.load(grad + row * hidden_size + column, mask=inside, other=0.0).to(
            tl.float32
        )
        gate = tl.load(gate_up + row * (2 * hidden_size) + column, mask=inside, other=0.0).to(
            tl.float32
        )
        up = tl.load(
            gate_up + hidden_size + row * (2 * hidden_size) + column, mask=inside, other=0.0
        ).to(tl.float32)
        gate_input_a = tl.load(
            input_a + row * input_a_stride + factor, mask=row_inside & is_gate, other=0.0
        )
        up_input_a = tl.load(
            input_a + gate_rank + row * input_a_stride + factor, mask=row_inside & is_up, other=0.0
        )
        down_grad_a = tl.load(
            grad_a + row * grad_a_stride + down_factor, mask=row_inside & is_down, other=0.0
        )
        # Recompute the activation, and with it h, which was not kept.
        value, derivative = _activation(gate, GELU)
        d_gate, d_up, hidden = (
            _materialize((grad_hidden * up * derivative).to(dtype)),
            _materialize((grad_hidden * value).to(dtype)),
            _materialize((value * up).to(dtype)),
        )
        tl.store(out + row * (2 * hidden_size + SPARE) + column, d_gate, mask=inside)
        tl.store(out + hidden_size + row * (2 * hidden_size + SPARE) + column, d_up, mask=inside)
        # Gradients of B of gate, of B of up and of A of down (transposed), while the tiles are
        # held.
        sum_gate = tl.dot(tl.trans(d_gate), gate_input_a, sum_gate)
        sum_up = tl.dot(tl.trans(d_up), up_input_a, sum_up)
        sum_down = tl.dot(tl.trans(hidden), down_grad_a, sum_down)
        if ADD_B:
            tl.atomic_add(
                out_b + row * SPARE + factor,
                tl.dot(d_gate, gate_b),
                mask=row_inside & is_gate,
                sem="relaxed",
            )
            tl.atomic_add(
                out_b + gate_rank + row * SPARE + factor,
                tl.dot(d_up, up_b),
                mask=row_inside & is_up,
                sem="relaxed",
            )
        # Move to the next rows.
        grad += ROWS * hidden_size
        gate_up += ROWS * 2 * hidden_size
        out += ROWS * (2 * hidden_size + SPARE)
        grad_a += ROWS * grad_a_stride
        input_a += ROWS * input_a_stride
        out_b += ROWS * SPARE
    tl.atomic_add(
        grad_gate_b + (left + column_down) * gate_rank + factor,
        sum_gate,
        mask=column_down_inside & is_gate,
        sem="relaxed",
    )
    tl.atomic_add(
        grad_up_b + (left + column_down) * up_rank + factor,
        sum_up,
        mask=column_down_inside & is_up,
        sem="relaxed",
    )
    tl.atomic_add(
        grad_down_a + down_factor * hidden_size + left + column_down,
        sum_down,
        mask=column_down_inside & is_down,
        sem="relaxed",
    )
