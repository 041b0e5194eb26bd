"""Gradients of an optimizer step, accumulated over micro-batches that fit into memory.

Out of memory is handled here: the micro-batch is halved and the step repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tarazu.engine.counts import TokenCounts
from tarazu.engine.cuda_graphs import recorder
from tarazu.engine.out_of_memory import is_out_of_memory
from tarazu.engine.precision import autocast
from tarazu.engine.prefetch import BatchPrefetcher
from tarazu.engine.task import Task
from tarazu.engine.trainable import Batch, TrainableModel
from tarazu.engine.trainer_state import TrainerState
from tarazu.errors import TarazuError
from tarazu.recipe.schema import Budget
from tarazu.storage.run_folder import RunDir


@dataclass
class GradientAccumulator:
    """Compute the gradients of a step.

    Args:
        task: computes the summed loss of a batch.
        model: gets the gradients.
        optimizer: holds the parameters whose gradients are clipped together.
        budget: precision and maximum gradient norm.
        device: where the model is.
        prefetcher: gives the micro-batches of a step.
        state: number of the step and size of the micro-batches.
        run: the run's folder, for error messages.
        warn: writes a warning: kind, text.
    """

    task: Task
    model: TrainableModel
    optimizer: torch.optim.Optimizer
    budget: Budget
    device: torch.device
    prefetcher: BatchPrefetcher
    state: TrainerState
    run: RunDir
    warn: Callable[[str, str], None]

    def forward_backward_with_oom_retry(self) -> tuple[torch.Tensor, TokenCounts]:
        """`forward_backward` of the current step; halves the micro-batches when memory runs out.

        The rows of the step stay the same, and so does the gradient.

        Returns:
            Mean loss and gradient norm, (2,), on the device; and the sizes of the step's rows.

        Raises:
            TarazuError: one row alone does not fit into memory.
        """
        while True:
            batches = self.prefetcher.batches(self.state.step, self.state.micro_batch_tokens)
            try:
                return self.forward_backward(batches)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                max_rows = max(batch.counts.rows for batch in batches)
            # Outside the `except` block, where the exception no longer holds the tensors.
            self.halve_micro_batch(max_rows)

    def forward_backward(self, batches: Sequence[Batch]) -> tuple[torch.Tensor, TokenCounts]:
        """Add up the gradients of all micro-batches of a step, and clip them.

        Args:
            batches: the micro-batches of the step.

        Returns:
            Mean loss per supervised token and gradient norm before clipping, (2,), on the device;
            and the sizes of the step's rows.
        """
        supervised = max(1, sum(batch.counts.supervised for batch in batches))
        total_loss, counts = torch.zeros((), device=self.device), TokenCounts()
        for batch in batches:
            with autocast(self.budget, self.device):
                loss = self.task.loss(self.model, batch.to(self.device))
            objective = loss.total if loss.penalty is None else loss.total + loss.penalty
            # Divide by the tokens of the whole step, not of this micro-batch: the gradient is then
            # the same for any cut into micro-batches.
            (objective / supervised).backward()
            total_loss += loss.total.detach()
            counts = counts + batch.counts
            # Free the autograd graph before the next forward pass builds another.
            del loss, objective
        parameters = [
            parameter
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.budget.max_grad_norm)
        return torch.stack([total_loss.float() / supervised, norm.float()]), counts

    def halve_micro_batch(self, max_rows: int) -> None:
        """Free memory and halve the micro-batches.

        Args:
            max_rows: rows of the largest micro-batch that was tried.

        Raises:
            TarazuError: it had one row, so it cannot be halved.
        """
        self.optimizer.zero_grad(set_to_none=True)
        recorder.invalidate_all()  # graphs of larger passes would keep their memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if max_rows <= 1:
            raise TarazuError(
                "one row alone does not fit into memory",
                location=str(self.run.path),
                hint="lower data.max_length, set budget.gradient_checkpointing: true, "
                "or take a smaller model",
            )
        self.state.micro_batch_tokens = max(1, self.state.micro_batch_tokens // 2)
        self.warn(
            "out_of_memory",
            f"out of memory: micro-batches of at most {self.state.micro_batch_tokens} tokens "
            "from now on; the step's rows stay the same",
        )
