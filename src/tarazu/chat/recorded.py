"""The decoder's training pass over a packed batch as recordings: a pass costs the host one launch each way.

See `engine.recording`. The loss stays outside, since the number of answer tokens differs from batch to batch.
"""

from __future__ import annotations

import torch

from tarazu.chat import flex, forward
from tarazu.chat.layout import ChatBatch
from tarazu.chat.trainee import ChatTrainee
from tarazu.engine.recording import Recorder
from tarazu.engine.task import Counts


def recorder(trainee: ChatTrainee) -> Recorder:
    """For the passes of `trainee`, one recording for each packed width."""

    def work(ids, virtual, positions, segments, longest: int) -> tuple[torch.Tensor]:
        nothing = ids.new_empty(0)
        batch = ChatBatch(ids, virtual, positions, segments, nothing, nothing, nothing, Counts(), longest)
        return (forward.hidden_states(trainee, batch),)

    return Recorder(work, trainee.module)


def hidden_states(trainee: ChatTrainee, batch: ChatBatch) -> torch.Tensor:
    """As `forward.hidden_states` without a past: from a recording where one is to be had, in training."""
    learns = trainee.module.training and torch.is_grad_enabled()
    if trainee.recorder is None or not learns or not flex.fits(batch.ids.shape[1], batch.ids.device):
        return forward.hidden_states(trainee, batch)
    window = getattr(trainee.base.config, "sliding_window", None)
    prefix = trainee.virtual if trainee.prefix else 0
    beyond = window is not None and batch.longest + prefix > window  # all that the pass needs to know of `longest`
    longest = batch.ids.shape[1] if beyond else 0
    return trainee.recorder(batch.ids, batch.virtual, batch.positions, batch.segments, also=(longest,))[0]
