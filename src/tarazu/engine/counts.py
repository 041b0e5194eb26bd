"""How many tokens a batch holds: the ledger adds these up."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class TokenCounts:
    """Sizes of a batch in tokens (for captions: words).

    Args:
        rows: rows in the batch.
        tokens: real tokens of the rows. The budget counts these, so every method has the same.
        supervised: tokens under the loss.
        padding: positions that hold no token.
        virtual: positions of a soft prompt.
    """

    rows: int = 0
    tokens: int = 0
    supervised: int = 0
    padding: int = 0
    virtual: int = 0

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def as_tuple(self) -> tuple[int, ...]:
        """The five counts, in the order of the fields."""
        return astuple(self)
