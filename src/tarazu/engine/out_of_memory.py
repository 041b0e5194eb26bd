"""Out-of-memory errors: how they are recognised.

`engine/gradients.py` handles them: it halves the micro-batch and repeats the step.
"""

from __future__ import annotations

# Parts of the messages of libraries, about a GPU or the host.
OUT_OF_MEMORY_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    return any(message in str(error) for message in OUT_OF_MEMORY_MESSAGES)
