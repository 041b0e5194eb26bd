"""Soft attention and an LSTM over a whole sentence, with a backward pass written by hand.

The plain path asks autograd to remember some forty small operations for every word, and to add up every weight's gradient
word by word. Here only what truly waits for h_{t-1} is done in the loop; the gradients of the weights are one product
each, after it. The numbers are the same (a test holds both to 1e-5), the kernels are half as many, and autograd sees one.

    [q_t, r_t, b_t] = W h_{t-1}     alpha_t = softmax(w . tanh(keys + q_t))     z_t = sigmoid(b_t) sum_i alpha_ti a_i
    gates_t = words_t + r_t + W_z z_t          c_t = f c_{t-1} + i g          h_t = o tanh(c_t)

T words, B images, P places, D channels, A width of the attention, H of the LSTM.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

aten = torch.ops.aten


class AttentionLSTMFunction(torch.autograd.Function):
    """(words (T, B, 4H), keys (B, P, A), features (B, P, D), h0, c0 (B, H), weight (N, H), bias (N,), score (A,),
    context (4H, D)) -> h (T, B, H), z (T, B, D), alpha (T, B, P).

    weight holds the query (A rows), the LSTM's recurrent weights (4H, gates in PyTorch's order: i, f, g, o) and, where z
    has a gate, that gate's row.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, words: Tensor, keys: Tensor, features: Tensor, h0: Tensor, c0: Tensor, weight: Tensor, bias: Tensor, score: Tensor, context: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
        (steps, count, _), (places, width), hidden = words.shape, keys.shape[1:], h0.shape[1]
        recurrent, gated = slice(width, width + 4 * hidden), len(weight) > width + 4 * hidden
        new = words.new_empty
        hs, cs = new(steps + 1, count, hidden), new(steps + 1, count, hidden)
        hs[0], cs[0] = h0, c0
        looked = new(steps, count, places, width)  # tanh(keys + q)
        alphas, zs, gates = (
            new(steps, count, places),
            new(steps, count, features.shape[2]),
            torch.empty_like(words),
        )
        betas, raw = (
            new(steps, count, 1),
            torch.empty_like(zs) if gated else zs,
        )  # raw: z before its gate
        for t in range(steps):
            mixed = torch.addmm(bias, hs[t], weight.t())
            torch.add(keys, mixed[:, None, :width], out=looked[t]).tanh_()
            torch.softmax((looked[t].view(-1, width) @ score).view(count, places), 1, out=alphas[t])
            torch.bmm(alphas[t][:, None], features, out=raw[t][:, None])
            if gated:
                torch.mul(raw[t], torch.sigmoid(mixed[:, -1:], out=betas[t]), out=zs[t])
            summed = torch.addmm(words[t] + mixed[:, recurrent], zs[t], context.t())
            torch.sigmoid(summed, out=gates[t])
            i, f, g, o = gates[t].chunk(4, 1)
            torch.tanh(summed[:, 2 * hidden : 3 * hidden], out=g)
            torch.addcmul(f * cs[t], i, g, out=cs[t + 1])
            torch.mul(o, torch.tanh(cs[t + 1]), out=hs[t + 1])
        ctx.recurrent, ctx.gated = recurrent, gated
        ctx.save_for_backward(
            features, hs, cs, looked, alphas, raw, zs, betas, gates, weight, score, context
        )
        return hs[1:], zs, alphas

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, of_hs: Tensor, of_zs: Tensor, of_alphas: Tensor
    ) -> tuple[Tensor | None, ...]:
        features, hs, cs, looked, alphas, raw, zs, betas, gates, weight, score, context = (
            ctx.saved_tensors
        )
        steps, count, width = len(of_hs), of_hs.shape[1], len(score)
        mixed = hs.new_zeros(
            steps, count, len(weight)
        )  # gradients of [q, r, b]; r's are those of the gates
        energies, seen = (
            torch.empty_like(alphas),
            torch.empty_like(zs),
        )  # of the scores and of z before its gate
        keys, h, c = torch.zeros_like(looked[0]), torch.zeros_like(hs[0]), torch.zeros_like(cs[0])
        for t in reversed(range(steps)):
            h, r = h + of_hs[t], mixed[t, :, ctx.recurrent]
            c = _cell(h, c, cs[t], cs[t + 1], gates[t], r)
            z = torch.addmm(of_zs[t], r, context, out=seen[t])
            if ctx.gated:
                inner = torch.bmm(z[:, None], raw[t][:, :, None])[:, 0]
                aten.sigmoid_backward(inner, betas[t], grad_input=mixed[t, :, -1:])
                z *= betas[t]
            alpha = torch.bmm(features, z[:, :, None])[:, :, 0] + of_alphas[t]
            aten._softmax_backward_data(alpha, alphas[t], 1, alpha.dtype, grad_input=energies[t])
            one = aten.tanh_backward(energies[t][:, :, None] * score, looked[t])
            keys += one
            torch.sum(one, 1, out=mixed[t, :, :width])
            h = mixed[t] @ weight
        flat = mixed.flatten(0, 1)
        own = (
            torch.bmm(alphas.permute(1, 2, 0), seen.transpose(0, 1))
            if ctx.needs_input_grad[2]
            else None
        )
        return (
            mixed[:, :, ctx.recurrent], keys, own, h, c,
            flat.t() @ hs[:-1].flatten(0, 1), flat.sum(0),
            looked.view(-1, width).t() @ energies.view(-1), flat[:, ctx.recurrent].t() @ zs.flatten(0, 1),
        )  # fmt: skip


def _cell(
    h: Tensor, c: Tensor, before: Tensor, after: Tensor, gates: Tensor, out: Tensor
) -> Tensor:
    """The LSTM cell backwards: gradients of h_t and c_t, (B, H) -> that of c_{t-1}; `out` (B, 4H) takes the gates'."""
    i, f, g, o = gates.chunk(4, 1)
    told = torch.tanh(after)
    c = c + aten.tanh_backward(h * o, told)
    aten.sigmoid_backward(torch.cat([c * g, c * before, c, h * told], 1), gates, grad_input=out)
    hidden = h.shape[1]
    out[:, 2 * hidden : 3 * hidden] = aten.tanh_backward(c * i, g)
    return c * f
