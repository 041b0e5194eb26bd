"""A piece of a training pass as two recordings (CUDA graphs), forward and backward, that the GPU plays back by itself.

A pass is hundreds or thousands of kernels; launching them from Python can take longer than running them. A recording is
made once for each shape of its inputs and knows nothing but addresses, so inputs are copied into it, and weights must stay
where they are (optimizer, averaging and loading all write in place). All recordings of one piece share their memory: what one
keeps between its forward and its backward pass is forgotten when the next one plays.
"""

from __future__ import annotations

import contextlib
import gc
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from tarazu.engine import device_memory
from tarazu.engine.loop import MEMORY_ERRORS
from tarazu.engine.progress import note

Work = Callable[..., tuple[Tensor, ...]]
MOST = 48  # recordings of one piece of work: each keeps its launches, some megabytes
_abandoned: list[torch.cuda.CUDAGraph] = []
_altered = 0  # how many times `altered` was called
_spaces = 0  # that are in use on a GPU


def altered() -> None:
    """Tells that modules were changed in a way that their tensors do not show (a hook, a share of dropout): no recording is valid any more."""
    global _altered
    _altered += 1


class Recorder:
    """`work(*inputs, *also)`, tensors that depend on a module's parameters, played back from recordings.

    Inputs need no gradients; the parameters' are added to their `.grad`, so ask for them by `backward()`, not `autograd.grad`.
    What cannot be recorded is run as it is, and `why` says so.

    Args:
        work: knows no randomness but the device's own generator, and never asks the device for a number.
        module: whose trainable parameters get gradients.
        often: a shape is recorded when it comes so often.
    """

    def __init__(self, work: Work, module: nn.Module, often: int = 1):
        self.work, self.module, self.often, self.why = work, module, often, ""
        self.records: dict[Hashable, Recording] = {}
        self.met: Counter[Hashable] = Counter()
        self.space: Space | None = None
        self.everything: list[nn.Parameter] = []  # to look for them at each call would take longer than the call
        self.trained: tuple[int, ...] = ()
        self.made = 0

    def __call__(self, *inputs: Tensor, also: tuple = ()) -> tuple[Tensor, ...]:
        self.everything = self.everything or list(self.module.parameters())
        parameters = [p for p in self.everything if p.requires_grad]
        trained = (_altered, *map(id, parameters))
        if trained != self.trained:  # a part has begun to train: the old recordings are of no use any more
            self.clear()
            self.trained = trained
        key = (also, *((x.shape, x.dtype) for x in inputs), torch.is_autocast_enabled("cuda"))
        self.met[key] += 1
        if key not in self.records and not self.why and self.met[key] >= self.often and len(self.records) < MOST:
            self._record(key, inputs, also, parameters)
        if key not in self.records:
            return self.work(*inputs, *also)
        return _Played.apply(self.records[key], len(inputs), *inputs, *parameters)

    def clear(self) -> None:
        """Gives the recordings' memory back."""
        self.records.clear()
        self.met.clear()
        self.space = None

    def __del__(self):
        """Recordings go before the memory that they share, also where the collector takes a recorder and its module together."""
        self.clear()

    def _record(self, key: Hashable, inputs: tuple[Tensor, ...], also: tuple, parameters: list[Tensor]) -> None:
        self.space = self.space or Space()
        self.space.let_go(parameters)
        try:
            with device_memory.recording(self.space.pool):
                self.records[key] = Recording(lambda *x: self.work(*x, *also), inputs, parameters, self.space)
            self.made += 1
        except RuntimeError as error:
            cause = error.__context__ or error
            self.clear()  # whatever is next, a smaller try or none, needs the room
            if any(text in str(e) for text in MEMORY_ERRORS for e in (error, cause)):
                raise RuntimeError(f"out of memory: {error}") from error
            settle()
            at = traceback.extract_tb(cause.__traceback__)[-1]
            self.why = f"{str(cause).splitlines()[0]} ({at.filename.rpartition('/')[2]}:{at.lineno})"
            del cause  # it holds this frame, and so itself and all that was on the device, until the collector comes
            note(f"passes are launched one by one, as they cannot be recorded: {self.why}")


class Space:
    """What the recordings of one piece of work share: a stream, memory, and a place for each parameter's gradient."""

    def __init__(self):
        gpu = torch.cuda.is_available()
        if gpu and hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # see `place`
        self.stream = torch.cuda.Stream() if gpu else None
        self.pool = torch.cuda.MemPool() if gpu else None
        self.gradients: dict[int, Tensor] = {}
        self.nodes: dict[int, Any] = {}
        if gpu:
            global _spaces
            _spaces += 1
            weakref.finalize(self, _left, self.pool.id).atexit = False

    def place(self, parameter: Tensor) -> Tensor:
        """Where its gradient comes. The end of its graph is made on this stream and kept: autograd hands gradients over on the
        stream where that node was made, and another stream must not wait for one that is being recorded."""
        if self.stream is not None and id(parameter) not in self.nodes:
            with torch.cuda.stream(self.stream), torch.enable_grad():
                self.nodes[id(parameter)] = parameter.view_as(parameter).grad_fn.next_functions[0][0]
        return self.gradients.setdefault(id(parameter), torch.empty_like(parameter, requires_grad=False))

    def let_go(self, parameters: list[Tensor]) -> None:
        """Gradients that have come so far leave their places, where a recording is about to be tried out."""
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad is self.gradients.get(id(parameter)):
                parameter.grad = parameter.grad.clone()


def _left(pool: tuple[int, int]) -> None:
    """A space is gone. With the last one go the matrix library's workspaces (66 MiB for each space on an H100), which would keep the pools."""
    global _spaces
    _spaces -= 1
    device_memory.forget(pool)
    if not _spaces:  # else another's recordings still write there
        torch._C._cuda_clearCublasWorkspaces()


class Recording:
    """One shape of inputs: where they, the outputs and the gradients lie, and how to fill them again."""

    def __init__(self, work: Work, inputs: tuple[Tensor, ...], parameters: list[Tensor], space: Space):
        self.work, self.parameters, self.turn = work, parameters, 0
        self.inputs = [x.detach().clone() for x in inputs]
        self.places: list[Tensor] = []
        self.pairs: list[tuple[Tensor, Tensor]] = []  # each parameter that gets a gradient, and its place
        dice = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        host_dice = torch.get_rng_state()
        try:
            with no_cast_kept(), nothing_collected(first=not space.nodes):
                self.places = [space.place(p) for p in parameters]  # only now is no older graph alive that would keep the ends on its stream
                warm_up(self._both, space)
                self.forward, outputs = recorded(self._outputs, space)
                self.outputs = [out.detach() for out in outputs]
                self.slopes = [torch.ones_like(out) for out in self.outputs]  # the gradients that come from outside
                self.backward, _ = recorded(self._gradients, space)
            if not torch.equal(host_dice, torch.get_rng_state()):
                raise RuntimeError("its dice fall on the host, where a recording would repeat the first throw")
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
        outputs, slopes = zip(*(pair for pair in zip(self.live, self.slopes, strict=True) if pair[0].requires_grad), strict=True)
        with torch.autocast(slopes[0].device.type, enabled=False):  # as in a backward pass after the loss
            found = torch.autograd.grad(outputs, self.parameters, slopes, allow_unused=True)
        self.pairs = [(p, place) for p, place, g in zip(self.parameters, self.places, found, strict=True) if g is not None]
        torch._foreach_add_([place for _, place in self.pairs], [g for g in found if g is not None])
        return ()

    def _both(self) -> None:
        self.slopes = [torch.ones_like(out) for out in self._outputs()]
        self._gradients()
        self.live = ()


class _Played(torch.autograd.Function):
    """(recording, count, *`count` inputs, *parameters) -> outputs."""

    @staticmethod
    def forward(ctx: FunctionCtx, recording: Recording, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        for own, given in zip(recording.inputs, tensors[:count], strict=True):
            own.copy_(given, non_blocking=True)
        recording.forward()
        recording.turn += 1
        ctx.recording, ctx.count, ctx.turn = recording, count, recording.turn
        return tuple(out.clone() for out in recording.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        recording = ctx.recording
        if recording.turn != ctx.turn:
            raise RuntimeError("a batch of the same shape was played again before this one's backward pass")
        for own, given in zip(recording.slopes, slopes, strict=True):
            own.copy_(given)
        put_in_place(recording.pairs)
        recording.backward()
        return None, None, *[None] * (ctx.count + len(recording.parameters))  # they are where they belong


def put_in_place(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Makes each place its parameter's `.grad`, with what has come so far: a few launches, where autograd would add each by itself."""
    new = [place for parameter, place in pairs if parameter.grad is None]
    moved = [(place, parameter.grad) for parameter, place in pairs if parameter.grad is not None and parameter.grad is not place]
    if new:
        torch._foreach_zero_(new)
    if moved:
        torch._foreach_copy_([place for place, _ in moved], [grad for _, grad in moved])
    for parameter, place in pairs:
        parameter.grad = place


def warm_up(work: Callable[[], None], space: Space) -> None:
    """Runs `work` aside once: libraries choose and allocate what they need, and code is compiled."""
    space.stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(space.stream), torch.cuda.use_mem_pool(space.pool):
        work()
    torch.cuda.current_stream().wait_stream(space.stream)
    torch.cuda.synchronize()


def recorded(work: Callable[[], tuple], space: Space) -> tuple[Callable[[], None], tuple]:
    """Records `work`; returns what plays it back, and the tensors that are filled then."""
    graph, stream, holders = torch.cuda.CUDAGraph(), torch.cuda.current_stream(), space.pool.use_count()
    try:
        with torch.cuda.graph(graph, pool=space.pool.id, stream=space.stream, capture_error_mode="thread_local"):
            found = work()
    except BaseException:
        abandon(graph, space.pool, holders)
        raise
    finally:
        torch.cuda.set_stream(stream)  # torch itself stays on the recording's where one failed
    return graph.replay, found


def abandon(graph: torch.cuda.CUDAGraph, pool: torch.cuda.MemPool, holders: int) -> None:
    """Strikes a recording that failed out of the allocator's books, where torch forgets it: up to 2.12 it counts as going on, and
    the next pool that is given back, anyone's, ends the process (pytorch#180395); up to 2.13 it holds its pool for ever (#190348).

    Args:
        holders: how many held the pool before.
    """
    _abandoned.append(graph)  # of some bytes, once it is reset; the books of the host's memory go on asking it
    graph.reset()
    with contextlib.suppress(RuntimeError):  # it does not count as going on
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool.id)
    for _ in range(pool.use_count() - holders):
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool.id)


@contextlib.contextmanager
def nothing_collected(first: bool) -> Iterator[None]:
    """An older recording that Python throws away while one is made would spoil it. Before the `first`, older graphs that keep the
    parameters' ends on their stream must go; later it would only take half a second each time."""
    if first:
        gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def settle() -> None:
    """After a recording that failed: torch's dice still believe that they are being recorded until one has ended well."""
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            recorded(lambda: (torch.zeros(1, device="cuda"),), Space())


@contextlib.contextmanager
def no_cast_kept() -> Iterator[None]:
    """Without autocast's cache: a cast weight from before a recording would never change again.

    Also around the warming up, for compiled code asks for the cache's state and would be compiled anew.
    """
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)
