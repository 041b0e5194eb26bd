"""A part of a training pass as two CUDA graphs, forward and backward, that the GPU replays.

A pass is hundreds or thousands of kernels, and launching them from Python can take longer than
running them. The graphs are captured once for each shape of the inputs:

1. The inputs are cloned into static tensors, and every parameter gets a static gradient buffer.
2. The pass runs once on a side stream, so that libraries are set up (`warm_up`).
3. The forward pass is captured, then `torch.autograd.grad` of its outputs, with static output
   gradients.
4. A call copies its inputs into the static tensors and replays the forward graph. Its backward pass
   copies the output gradients, binds the gradient buffers to the parameters' `.grad`, and replays
   the backward graph, which adds to them.

Weights must stay at their addresses, so the optimizer, the weight average and the loading of
weights all write in place. All graphs of a function share one memory pool, so a forward pass must
be followed by its own backward pass: any other replay or capture overwrites the activations it
saved. Capture the widest shape first: narrower ones then reuse its memory, while a wider one
captured later needs new memory on top.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from tarazu.engine.cuda_graphs import memory
from tarazu.engine.cuda_graphs.capture import (
    GraphPool,
    autocast_cache_disabled,
    capture,
    gc_paused,
    reset_generator_after_failure,
    warm_up,
)
from tarazu.engine.out_of_memory import is_out_of_memory
from tarazu.engine.progress import log

Work = Callable[..., tuple[Tensor, ...]]
MAX_GRAPHS = 48  # per `GraphedFunction`; each graph costs a few MB for its list of launches
_generation = 0  # graphs of an older generation must not be replayed


def invalidate_all() -> None:
    """Mark all captured graphs of the process as stale.

    Each function drops its graphs, and their memory, at its next call. Call this after a change
    that leaves a module's tensors as they are (a hook, a dropout probability).
    """
    global _generation
    _generation += 1


class GraphedFunction:
    """`work(*inputs, *static_args)`, replayed from CUDA graphs.

    Inputs get no gradients. The parameters' gradients are added to their `.grad`: use `backward()`,
    not `autograd.grad`. After one failed capture every shape runs eagerly, and `failure_reason`
    says why.

    Args:
        work: takes tensors and returns tensors, each of any shape. It draws random numbers on the
            device only, and never reads a number from the device.
        module: its trainable parameters get gradients.
        min_calls: capture a shape at this call with it; earlier calls run eagerly.
    """

    def __init__(self, work: Work, module: nn.Module, min_calls: int = 1):
        self.work, self.module, self.min_calls = work, module, min_calls
        self.failure_reason = ""
        self.graphs: dict[Hashable, CapturedGraphs] = {}
        self.call_counts: Counter[Hashable] = Counter()
        self.graph_pool: GraphPool | None = None
        self.num_captured = 0
        # Listed once, because walking the module takes longer than a replay. So the module must not
        # gain or lose parameters.
        self._all_parameters: list[nn.Parameter] = []
        self._captured_for: tuple[int, ...] = ()  # generation and ids of the trainable parameters
        self._capacity = 0

    def __call__(self, *inputs: Tensor, static_args: tuple = ()) -> tuple[Tensor, ...]:
        """Replay the graphs of these shapes; capture them once they have had `min_calls` calls.

        Args:
            inputs: tensors of any shape.
            static_args: hashable arguments that the captured pass depends on.

        Returns:
            The outputs of `work`.
        """
        parameters, key = self._trainable_parameters(), self._key(inputs, static_args)
        self.call_counts[key] += 1
        if self.call_counts[key] >= self.min_calls:
            self._capture(key, inputs, static_args, parameters)
        if key not in self.graphs:
            return self.work(*inputs, *static_args)
        return _Replay.apply(self.graphs[key], len(inputs), *inputs, *parameters)

    def capacity(self) -> int:
        """Number of elements of the largest captured `inputs[0]`; smaller ones reuse its memory."""
        self._trainable_parameters()  # discards stale graphs
        return self._capacity

    def prepare(self, *inputs: Tensor, static_args: tuple = ()) -> None:
        """Capture inputs of these shapes before they are used."""
        self._capture(
            self._key(inputs, static_args), inputs, static_args, self._trainable_parameters()
        )

    def clear(self) -> None:
        """Free the graphs and their memory."""
        self.graphs.clear()
        self.call_counts.clear()
        self.graph_pool, self._capacity = None, 0

    def __del__(self) -> None:
        # Free graphs before their pool, also when the garbage collector breaks a reference cycle
        # with the module, in any order.
        self.clear()

    def _trainable_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters. If they changed since the capture, the graphs are discarded."""
        self._all_parameters = self._all_parameters or list(self.module.parameters())
        parameters = [p for p in self._all_parameters if p.requires_grad]
        captured_for = (_generation, *map(id, parameters))
        if captured_for != self._captured_for:
            self.clear()
            self._captured_for = captured_for
        return parameters

    @staticmethod
    def _key(inputs: Sequence[Tensor], static_args: tuple) -> Hashable:
        """Everything that a captured pass depends on, apart from the values in the inputs."""
        shapes = ((x.shape, x.dtype) for x in inputs)
        return (static_args, *shapes, torch.is_autocast_enabled("cuda"))

    def _capture(
        self,
        key: Hashable,
        inputs: tuple[Tensor, ...],
        static_args: tuple,
        parameters: list[nn.Parameter],
    ) -> None:
        """Capture these shapes, unless they are captured or cannot be."""
        if key in self.graphs or self.failure_reason or len(self.graphs) >= MAX_GRAPHS:
            return
        self.graph_pool = self.graph_pool or GraphPool()
        try:
            # The warm-up overwrites the gradient buffers: move what they have accumulated
            # elsewhere.
            self.graph_pool.detach_gradients(parameters)
            with memory.capture_counted(self.graph_pool.pool):
                self.graphs[key] = CapturedGraphs(
                    lambda *x: self.work(*x, *static_args), inputs, parameters, self.graph_pool
                )
        except RuntimeError as error:
            self._handle_failure(error)
        else:
            self.num_captured += 1
            self._capacity = max(self._capacity, inputs[0].numel())

    def _handle_failure(self, error: RuntimeError) -> None:
        """Free all graphs, then run eagerly from now on; raise again if memory ran out."""
        # Ending a failed capture raises a second error; the first one is its context.
        cause = error.__context__ or error
        self.clear()  # the next try, smaller or eager, needs the memory
        if is_out_of_memory(error) or is_out_of_memory(cause):
            raise RuntimeError(f"out of memory: {error}") from error
        reset_generator_after_failure()
        source = traceback.extract_tb(cause.__traceback__)[-1]
        file = source.filename.rpartition("/")[2]
        self.failure_reason = f"{str(cause).splitlines()[0]} ({file}:{source.lineno})"
        log(f"no CUDA graphs, kernels are launched one by one: {self.failure_reason}")


class CapturedGraphs:
    """The graphs of one shape of inputs, with their static tensors.

    Args:
        work: the pass, as a function of the inputs alone.
        inputs: tensors of the shapes to capture.
        parameters: parameters that get gradients.
        graph_pool: stream, memory and gradient buffers.

    Raises:
        RuntimeError: the pass cannot be captured, or memory ran out.
    """

    def __init__(
        self,
        work: Work,
        inputs: tuple[Tensor, ...],
        parameters: list[nn.Parameter],
        graph_pool: GraphPool,
    ):
        self.work, self.parameters = work, parameters
        self.replay_counter = graph_pool.replay_counter
        self.replay_counter.next()  # the capture overwrites what earlier passes have kept
        self.inputs = [x.detach().clone() for x in inputs]
        self.grad_buffers: list[Tensor] = []
        # (parameter, buffer) of the parameters that get a gradient; set by `_backward`.
        self.bound: list[tuple[Tensor, Tensor]] = []
        outputs: tuple[Tensor, ...] = ()
        host_rng = torch.get_rng_state()
        device_rng = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        try:
            with autocast_cache_disabled(), gc_paused(collect_first=graph_pool.is_unused):
                # Only here: `gc_paused` has just collected older graphs. While they live, the
                # parameters' AccumulateGrad nodes stay tied to those graphs' streams.
                self.grad_buffers = [graph_pool.grad_buffer(p) for p in parameters]
                warm_up(self._forward_and_backward, graph_pool)
                self.replay_forward, outputs = capture(self._forward, graph_pool)
                self.outputs = [out.detach() for out in outputs]
                # Gradients with respect to the outputs. The rest of the backward pass, outside the
                # graph, writes them, so they are static and not in the pool.
                self.output_grads = [torch.ones_like(out) for out in self.outputs]
                self.replay_backward, _ = capture(self._backward, graph_pool)
            if not torch.equal(host_rng, torch.get_rng_state()):
                raise RuntimeError(
                    "random numbers are drawn on the host, and a replay would repeat the first ones"
                )
        finally:
            # Drop the autograd graph, whose memory the next capture shares.
            del outputs
            self._live_outputs = ()
            # Take back the draws of warm-up and capture: a resumed run captures at other steps, and
            # must still draw the same numbers.
            torch.set_rng_state(host_rng)
            if device_rng is not None:
                torch.cuda.set_rng_state(device_rng)

    def _forward(self) -> tuple[Tensor, ...]:
        """The forward pass on the static inputs; keeps its autograd graph for `_backward`."""
        self._live_outputs = self.work(*self.inputs)
        return self._live_outputs

    def _backward(self) -> tuple[()]:
        """Add the gradients of the last `_forward` to the gradient buffers.

        Outputs that need no gradient (numbers for the log) are left out.

        Raises:
            RuntimeError: no output needs a gradient.
        """
        output_pairs = zip(self._live_outputs, self.output_grads, strict=True)
        trained = [(out, grad) for out, grad in output_pairs if out.requires_grad]
        if not trained:
            raise RuntimeError("no output needs a gradient")
        outputs, output_grads = zip(*trained, strict=True)
        # Without autocast, as in any backward pass.
        with torch.autocast(output_grads[0].device.type, enabled=False):
            grads = torch.autograd.grad(outputs, self.parameters, output_grads, allow_unused=True)
        used = [grad is not None for grad in grads]
        buffer_pairs = zip(self.parameters, self.grad_buffers, strict=True)
        self.bound = [pair for pair, is_used in zip(buffer_pairs, used, strict=True) if is_used]
        # `contiguous` gives each gradient the layout of its buffer; then one launch adds them all.
        torch._foreach_add_(
            [buffer for _, buffer in self.bound],
            [grad.contiguous() for grad in grads if grad is not None],
        )
        return ()

    def _forward_and_backward(self) -> None:
        """The whole pass, for the warm-up."""
        # Temporary: `__init__` replaces these after the capture of the forward pass.
        self.output_grads = [torch.ones_like(out) for out in self._forward()]
        self._backward()
        self._live_outputs = ()


class _Replay(torch.autograd.Function):
    """Replay captured graphs: (graphs, number of inputs, *inputs, *parameters) -> outputs.

    The parameters are arguments only so that autograd calls `backward`.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, graphs: CapturedGraphs, num_inputs: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Copy the inputs (they have the captured shapes) and replay the forward graph."""
        for static_input, given in zip(graphs.inputs, tensors[:num_inputs], strict=True):
            static_input.copy_(given, non_blocking=True)
        graphs.replay_forward()
        ctx.graphs, ctx.num_inputs = graphs, num_inputs
        ctx.pass_number = graphs.replay_counter.next()
        return tuple(out.clone() for out in graphs.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        """Copy the output gradients (they have the outputs' shapes) and replay the backward graph.

        Raises:
            RuntimeError: another pass has overwritten the tensors of this one.
        """
        graphs = ctx.graphs
        if graphs.replay_counter.number != ctx.pass_number:
            raise RuntimeError(
                "the tensors that this backward pass needs are overwritten: another pass was "
                "replayed or captured since, or the backward pass has run already"
            )
        graphs.replay_counter.next()  # what the forward pass kept is used up
        for static_grad, given in zip(graphs.output_grads, output_grads, strict=True):
            static_grad.copy_(given)
        bind_gradients(graphs.bound)
        graphs.replay_backward()
        # No gradients for autograd to accumulate: the graph has added them to the buffers.
        return (None, None, *[None] * (ctx.num_inputs + len(graphs.parameters)))


def bind_gradients(bound: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Make each static buffer its parameter's `.grad`, preserving accumulated gradients.

    It takes one launch for all new buffers and one for all accumulated gradients; autograd would
    launch an addition for each parameter.

    Args:
        bound: (parameter, buffer) pairs of equal shapes.
    """
    new = [buffer for parameter, buffer in bound if parameter.grad is None]
    accumulated = [
        (buffer, parameter.grad)
        for parameter, buffer in bound
        if parameter.grad is not None and parameter.grad is not buffer
    ]
    if new:
        torch._foreach_zero_(new)
    if accumulated:
        buffers, grads = zip(*accumulated, strict=True)
        torch._foreach_copy_(buffers, grads)
    for parameter, buffer in bound:
        parameter.grad = buffer
