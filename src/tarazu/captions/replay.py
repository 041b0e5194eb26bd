"""The loss of a batch and its gradients as two recordings (CUDA graphs) that the GPU plays back by itself.

A caption's step is many hundred kernels of a few microseconds each: launching them from Python takes longer than running
them. A recording is made once for each shape of batch and knows nothing but addresses, so inputs are copied into it, and
weights must stay where they are (optimizer, averaging and loading all write in place). Dropout still draws anew.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tarazu.engine.loop import MEMORY_ERRORS
from tarazu.engine.progress import note
from tarazu.engine.recording import Played, no_cast_kept, nothing_collected

Work = Callable[..., tuple[Tensor, ...]]
OFTEN = 3  # a shape is recorded when it comes so often: the last batch of an epoch may be the only one of its size
WARM_UP = 2  # runs before a recording, in which libraries choose and allocate what they need


class Replay:
    """`work(*inputs)`, summed losses of a module, played back from recordings where that can be done.

    Inputs need no gradients; the module's parameters get theirs. What cannot be recorded is run as it is, and `why` says
    so. No other graph of the module may be alive when one is made: its ends would draw their own stream into the recording.
    """

    def __init__(self, work: Work, module: nn.Module):
        self.work, self.module, self.why, self.recorded = work, module, "", 0
        self.records: dict[tuple, Recording] = {}
        self.met: Counter[tuple] = Counter()
        self.trained: tuple[int, ...] = ()

    def forget(self) -> None:
        """Gives the memory of all recordings back."""
        self.records.clear()
        self.met.clear()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        trained = tuple(map(id, parameters))
        if trained != self.trained:  # a part has begun to train: the old recordings are of no use any more
            self.forget()
            self.trained = trained
        key = (*((x.shape, x.dtype) for x in inputs), torch.is_autocast_enabled("cuda"))
        self.met[key] += 1
        if key not in self.records and not self.why and self.met[key] >= OFTEN:
            self._record(key, inputs, parameters)
        if key not in self.records:
            return self.work(*inputs)
        return Played.apply(self.records[key], len(inputs), *inputs, *parameters)

    def _record(self, key: tuple, inputs: tuple[Tensor, ...], parameters: list[Tensor]) -> None:
        try:
            self.records[key] = Recording(self.work, inputs, parameters)
            self.recorded += 1
        except RuntimeError as error:
            if any(text in str(error) for text in MEMORY_ERRORS):
                raise
            settle()
            self.why = str(error).splitlines()[0]
            note(f"steps are launched one by one, as they cannot be recorded: {self.why}")


class Recording:
    """One shape of batch: where its inputs, its losses and its gradients lie, and how to fill them again."""

    def __init__(self, work: Work, inputs: tuple[Tensor, ...], parameters: list[Tensor]):
        self.work, self.parameters, self.turn = work, parameters, 0
        self.inputs = [x.detach().clone() for x in inputs]
        dice = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        try:
            self.pool = warm_up(self._both)
            self.forward, losses = recorded(self._losses, self.pool)
            self.outputs = [loss.detach() for loss in losses]
            self.slopes = [torch.ones_like(loss) for loss in self.outputs]  # the gradients that come from outside
            self.backward, self.gradients = recorded(self._gradients, self.pool)
        finally:
            self.live = ()  # else autograd would go on adding up gradients on the stream of the recording
            if dice is not None:  # a resumed run must draw what an uninterrupted one would
                torch.cuda.set_rng_state(dice)

    def _losses(self) -> tuple[Tensor, ...]:
        self.live = self.work(*self.inputs)
        return self.live

    def _gradients(self) -> tuple[Tensor | None, ...]:
        """A loss that is only reported has none, and is passed over."""
        losses, slopes = zip(*(pair for pair in zip(self.live, self.slopes, strict=True) if pair[0].requires_grad), strict=True)
        return torch.autograd.grad(losses, self.parameters, slopes, allow_unused=True)

    def _both(self) -> None:
        self.slopes = [torch.ones_like(loss) for loss in self._losses()]
        self._gradients()
        self.live = ()  # nodes that live on would belong to the stream of the warm-up, not to the recording's


def warm_up(work: Callable[[], None]) -> tuple[int, int] | None:
    """Runs `work` aside, as recording asks for; returns the memory pool that its recordings share."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    return torch.cuda.graph_pool_handle()


def recorded(work: Callable[[], tuple], pool: tuple[int, int] | None) -> tuple[Callable[[], None], tuple]:
    """Records `work`; returns what plays it back, and the tensors that are filled then."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with no_cast_kept(), nothing_collected(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            found = work()
    finally:
        torch.cuda.set_stream(stream)  # torch itself stays on the recording's where one failed
    return graph.replay, found


def settle() -> None:
    """After a recording that failed: torch's dice still believe that they are being recorded until one has ended well."""
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):
            recorded(lambda: (torch.zeros(1, device="cuda"),), None)
