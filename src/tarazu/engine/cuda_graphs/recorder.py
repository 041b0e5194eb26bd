"""A piece of a training pass as two recordings (CUDA graphs), forward and backward, that the GPU plays back by itself.

A pass is hundreds or thousands of kernels; launching them from Python can take longer than running them. A recording is
made once for each shape of its inputs and knows nothing but addresses, so inputs are copied into it, and weights must stay
where they are (optimizer, averaging and loading all write in place). All recordings of one piece share their memory: what one
keeps between its forward and its backward pass is forgotten when the next one plays.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from tarazu.engine.cuda_graphs import memory
from tarazu.engine.cuda_graphs.capture import (
    GraphPool,
    capture,
    gc_paused,
    no_cast_kept,
    settle,
    warm_up,
)
from tarazu.engine.progress import log

Work = Callable[..., tuple[Tensor, ...]]
MOST = 48  # recordings of one piece of work: each keeps its launches, some megabytes
_outdated = 0  # how many times


def invalidate_all() -> None:
    """No recording may be played any more, and its memory goes: modules were changed in a way that their tensors do not show
    (a hook, a share of dropout), or the room is needed."""
    global _outdated
    _outdated += 1


class GraphedFunction:
    """`work(*inputs, *static_args)`, tensors that depend on a module's parameters, played back from recordings.

    Inputs need no gradients; the parameters' are added to their `.grad`, so ask for them by `backward()`, not `autograd.grad`.
    What cannot be recorded is run as it is, and `why` says so.

    Args:
        work: knows no randomness but the device's own generator, and never asks the device for a number.
        module: whose trainable parameters get gradients.
        min_calls: a shape is recorded when it comes so often.
    """

    def __init__(self, work: Work, module: nn.Module, min_calls: int = 1):
        self.work, self.module, self.min_calls, self.failure_reason = work, module, min_calls, ""
        self.graphs: dict[Hashable, CapturedGraphs] = {}
        self.call_counts: Counter[Hashable] = Counter()
        self.graph_pool: GraphPool | None = None
        self.all_parameters: list[
            nn.Parameter
        ] = []  # to look for them at each call would take longer than the call
        self.trained: tuple[int, ...] = ()
        self.num_captured = 0
        self._largest = 0

    def __call__(self, *inputs: Tensor, static_args: tuple = ()) -> tuple[Tensor, ...]:
        parameters, key = self._parameters(), self._key(inputs, static_args)
        self.call_counts[key] += 1
        if self.call_counts[key] >= self.min_calls:
            self._record(key, inputs, static_args, parameters)
        if key not in self.graphs:
            return self.work(*inputs, *static_args)
        return _Played.apply(self.graphs[key], len(inputs), *inputs, *parameters)

    def capacity(self) -> int:
        """How many numbers the first input of the largest recording has: smaller ones lie in its memory."""
        self._parameters()
        return self._largest

    def prepare(self, *inputs: Tensor, static_args: tuple = ()) -> None:
        """Records inputs of these shapes before they come."""
        self._record(self._key(inputs, static_args), inputs, static_args, self._parameters())

    def clear(self) -> None:
        """Gives the recordings' memory back."""
        self.graphs.clear()
        self.call_counts.clear()
        self.graph_pool, self._largest = None, 0

    def _parameters(self) -> list[nn.Parameter]:
        """Those that learn. Where others learn than before, the old recordings are of no use any more."""
        self.all_parameters = self.all_parameters or list(self.module.parameters())
        parameters = [p for p in self.all_parameters if p.requires_grad]
        trained = (_outdated, *map(id, parameters))
        if trained != self.trained:
            self.clear()
            self.trained = trained
        return parameters

    @staticmethod
    def _key(inputs: tuple[Tensor, ...], static_args: tuple) -> Hashable:
        return (static_args, *((x.shape, x.dtype) for x in inputs), torch.is_autocast_enabled("cuda"))

    def __del__(self):
        """Recordings go before the memory that they share, also where the collector takes a recorder and its module together."""
        self.clear()

    def _record(
        self, key: Hashable, inputs: tuple[Tensor, ...], static_args: tuple, parameters: list[Tensor]
    ) -> None:
        """Unless there is one of these shapes, or there can be none."""
        if key in self.graphs or self.failure_reason or len(self.graphs) >= MOST:
            return
        self.graph_pool = self.graph_pool or GraphPool()
        try:
            self.graph_pool.detach_gradients(parameters)
            with memory.recording(self.graph_pool.pool):
                self.graphs[key] = CapturedGraphs(
                    lambda *x: self.work(*x, *static_args), inputs, parameters, self.graph_pool
                )
            self.num_captured, self._largest = self.num_captured + 1, max(self._largest, inputs[0].numel())
        except RuntimeError as error:
            cause = error.__context__ or error
            self.clear()  # whatever is next, a smaller try or none, needs the room
            if any(map(memory.is_out_of_memory, (error, cause))):
                raise RuntimeError(f"out of memory: {error}") from error
            settle()
            at = traceback.extract_tb(cause.__traceback__)[-1]
            self.failure_reason = (
                f"{str(cause).splitlines()[0]} ({at.filename.rpartition('/')[2]}:{at.lineno})"
            )
            del cause  # it holds this frame, and so itself and all that was on the device, until the collector comes
            log(f"passes are launched one by one, as they cannot be recorded: {self.failure_reason}")


class CapturedGraphs:
    """One shape of inputs: where they, the outputs and the gradients lie, and how to fill them again."""

    def __init__(
        self, work: Work, inputs: tuple[Tensor, ...], parameters: list[Tensor], space: GraphPool
    ):
        self.work, self.parameters, self.replay_counter = work, parameters, space.replay_counter
        self.inputs = [x.detach().clone() for x in inputs]
        self.places: list[Tensor] = []
        self.pairs: list[
            tuple[Tensor, Tensor]
        ] = []  # each parameter that gets a gradient, and its place
        dice = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        host_dice = torch.get_rng_state()
        self.replay_counter.next()
        try:
            with no_cast_kept(), gc_paused(first=not space.nodes):
                self.places = [
                    space.grad_buffer(p) for p in parameters
                ]  # only now is no older graph alive that would keep the ends on its stream
                warm_up(self._both, space)
                self.forward, outputs = capture(self._outputs, space)
                self.outputs = [out.detach() for out in outputs]
                self.output_grads = [
                    torch.ones_like(out) for out in self.outputs
                ]  # the gradients that come from outside
                self.backward, _ = capture(self._gradients, space)
            if not torch.equal(host_dice, torch.get_rng_state()):
                raise RuntimeError(
                    "its dice fall on the host, where a recording would repeat the first throw"
                )
        finally:
            self.live, outputs = (), ()  # their memory is the next recording's as well
            torch.set_rng_state(host_dice)
            if dice is not None:  # a resumed run must draw what an uninterrupted one would
                torch.cuda.set_rng_state(dice)

    def _outputs(self) -> tuple[Tensor, ...]:
        self.live = self.work(*self.inputs)
        return self.live

    def _gradients(self) -> tuple[()]:
        """Added to their places. An output without a gradient, one that is only reported, is passed over."""
        outputs, slopes = zip(
            *(pair for pair in zip(self.live, self.output_grads, strict=True) if pair[0].requires_grad),
            strict=True,
        )
        with torch.autocast(
            slopes[0].device.type, enabled=False
        ):  # as in a backward pass after the loss
            found = torch.autograd.grad(outputs, self.parameters, slopes, allow_unused=True)
        self.pairs = [
            (p, place)
            for p, place, g in zip(self.parameters, self.places, found, strict=True)
            if g is not None
        ]
        grads = [
            g.contiguous() for g in found if g is not None
        ]  # one that lies otherwise than its place, and each is added in a launch of its own
        torch._foreach_add_([place for _, place in self.pairs], grads)
        return ()

    def _both(self) -> None:
        self.output_grads = [torch.ones_like(out) for out in self._outputs()]
        self._gradients()
        self.live = ()


class _Played(torch.autograd.Function):
    """(recording, count, *`count` inputs, *parameters) -> outputs."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, recording: CapturedGraphs, count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        for own, given in zip(recording.inputs, tensors[:count], strict=True):
            own.copy_(given, non_blocking=True)
        recording.forward()
        ctx.recording, ctx.count, ctx.turn = recording, count, recording.replay_counter.next()
        return tuple(out.clone() for out in recording.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        recording = ctx.recording
        if recording.replay_counter.number != ctx.turn:
            raise RuntimeError(
                "another pass was played or recorded after this one, or this one's backward pass: what it needs is overwritten"
            )
        recording.replay_counter.next()
        for own, given in zip(recording.output_grads, slopes, strict=True):
            own.copy_(given)
        bind_gradients(recording.pairs)
        recording.backward()
        return (
            None,
            None,
            *[None] * (ctx.count + len(recording.parameters)),
        )  # they are where they belong


def bind_gradients(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Makes each place its parameter's `.grad`, with what has come so far: a few launches, where autograd would add each by itself."""
    new = [place for parameter, place in pairs if parameter.grad is None]
    moved = [
        (place, parameter.grad)
        for parameter, place in pairs
        if parameter.grad is not None and parameter.grad is not place
    ]
    if new:
        torch._foreach_zero_(new)
    if moved:
        torch._foreach_copy_([place for place, _ in moved], [grad for _, grad in moved])
    for parameter, place in pairs:
        parameter.grad = place
