"""From a picture to words: greedy is a beam of one; a beam keeps several sentences alive, for many pictures at once.

What is written can never hold `<pad>`, `<sos>` or `<unk>`, is never empty, and always ends. Nothing here knows what a
decoder is made of: it needs `start` and `step`, and a state that is a tuple of tensors with the batch first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tarazu.captions.data.vocabulary import EOS, PAD, SOS, UNK
from tarazu.captions.model.decoders import State

FORBIDDEN_TOKENS = (PAD, SOS, UNK)
NEG_INF = float("-inf")


class DecodableModel(Protocol):
    """A model, or several that write together. `fixed` are the places in its state of what no word changes."""

    image_state_indices: tuple[int, ...]

    def start(self, pictures: Tensor) -> State: ...

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]: ...


@dataclass(frozen=True)
class Hypothesis:
    """A finished hypothesis: token ids without `<sos>` and `<eos>`, and its length-normalised log-probability."""

    token_ids: list[int]
    score: float


class Ensemble(nn.Module):
    """Several models that write together: at every word their log-probabilities are averaged."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.sizes: list[int] = []

    @property
    def image_state_indices(self) -> tuple[int, ...]:
        """Known once it has started."""
        before = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        return tuple(
            at + i
            for at, member in zip(before, self.members, strict=True)
            for i in member.image_state_indices
        )

    def start(self, pictures: Tensor) -> State:
        states = [member.start(pictures) for member in self.members]
        self.sizes = [len(state) for state in states]
        return tuple(tensor for state in states for tensor in state)

    def step(self, state: State, token: Tensor) -> tuple[Tensor, State, Tensor | None]:
        total, after, looks, place = 0.0, [], [], 0
        for member, size in zip(self.members, self.sizes, strict=True):
            logits, own, alpha = member.step(state[place : place + size], token)
            total = total + torch.log_softmax(logits.float(), -1)
            after += own
            looks += [] if alpha is None else [alpha.float()]
            place += size
        return (
            total / len(self.members),
            tuple(after),
            torch.stack(looks).mean(0) if looks else None,
        )

    def forward_teacher_forced(
        self,
        pictures: Tensor,
        tokens: Tensor,
        attention: bool = True,
        at: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As `ImageCaptioningModel.forward_teacher_forced`: averaged log-probabilities for logits, and averaged attention."""
        shared = {} if rows is None else {"rows": rows}
        both = [
            member.forward_teacher_forced(pictures, tokens, attention, at, **shared)
            for member in self.members
        ]
        looks = [alpha.float() for _, alpha in both if alpha is not None]
        return torch.stack([torch.log_softmax(logits.float(), -1) for logits, _ in both]).mean(
            0
        ), torch.stack(looks).mean(0) if looks else None


@torch.no_grad()
def greedy(writer: DecodableModel, pictures: Tensor, max_words: int) -> list[Hypothesis]:
    """The likeliest next word, again and again: one sentence for each picture (B, ...)."""
    return [best[0] for best in beam_search(writer, pictures, 1, max_words)]


@torch.no_grad()
def beam_search(
    writer: DecodableModel,
    pictures: Tensor,
    beams: int,
    max_words: int,
    length_penalty: float = 1.0,
    block_trigrams: bool = False,
    stop: str = "full",
) -> list[list[Hypothesis]]:
    """For each picture up to `beams` different finished sentences, best first; there is always at least one.

    A picture is done when `beams` of its sentences have ended (`stop` "full"), or only when, besides, none that lives
    scores better than the worst of them ("ahead"). A sentence of n words scores log p / (n + 1)^length_penalty: at 1 the
    mean over its words and its end. A beam that is dead (no continuation is left for it) is never copied from a living
    one.
    """
    hunt = BeamState(len(pictures), beams, max_words, length_penalty, stop, pictures.device)
    state = tuple(tensor.repeat_interleave(beams, 0) for tensor in writer.start(pictures))
    fixed = writer.image_state_indices  # a beam is only ever replaced by one of the same picture
    for place in range(max_words + 1):
        logits, state, _ = writer.step(state, hunt.last())
        rows = hunt.advance(place, _allowed(logits, hunt, place, block_trigrams))
        state = tuple(
            part if i in fixed else part.index_select(0, rows) for i, part in enumerate(state)
        )
        if place % 4 == 3 and hunt.over():  # asking the device costs a wait
            break
    return hunt.sentences()


@torch.no_grad()
def sample(writer: DecodableModel, pictures: Tensor, max_words: int) -> Tensor:
    """One sentence for each picture, drawn from the model: (B, at most max_words + 2), `<sos>` words `<eos>`
    `<pad>`... Nothing in it waits for a GPU, so it can be recorded."""
    state, count = writer.start(pictures), len(pictures)
    token = torch.full((count,), SOS, device=pictures.device)
    tokens, ended = [token], torch.zeros(count, dtype=torch.bool, device=pictures.device)
    for place in range(max_words + 1):
        logits, state, _ = writer.step(state, token)
        chances = torch.softmax(_mask_forbidden(logits.float(), place, max_words), 1)
        # the first to arrive of waiting times at these rates: a draw that the program need not wait for
        token = (
            (chances / torch.empty_like(chances).exponential_()).argmax(1).masked_fill(ended, PAD)
        )
        ended = ended | (token == EOS)
        tokens.append(token)
        if not ended.is_cuda and bool(ended.all()):  # a GPU would have to be waited for
            break
    return torch.stack(tokens, 1)


class BeamState:
    """The sentences of a beam search: those alive, (B, K), and the best K that have ended."""

    def __init__(
        self,
        count: int,
        beams: int,
        max_words: int,
        length_penalty: float,
        stop: str,
        device: torch.device,
    ):
        self.count, self.beams, self.power, self.stop = count, beams, length_penalty, stop
        self.words = torch.full((count, beams, max_words + 2), PAD, device=device)
        self.words[:, :, 0] = SOS
        self.scores = torch.full((count, beams), NEG_INF, device=device)
        self.scores[:, 0] = 0.0  # all beams are alike at first: one of them is enough
        self.ended = torch.full_like(self.words, PAD)
        self.marks = torch.full_like(self.scores, NEG_INF)
        self.place, self.rows = 0, torch.arange(count, device=device).unsqueeze(1)

    def last(self) -> Tensor:
        return self.words[:, :, self.place].flatten()

    def advance(self, place: int, logp: Tensor) -> Tensor:
        """Takes the log-probabilities (B, K, V) of the next word; returns which rows of the state live on."""
        vocabulary = logp.shape[2]
        totals = (self.scores.unsqueeze(2) + logp).flatten(1)
        scores, picks = totals.topk(min(2 * self.beams, totals.shape[1]), 1)
        parents, words = picks // vocabulary, picks % vocabulary
        grown = self.words[self.rows, parents]
        grown[:, :, place + 1] = words
        among_best = torch.arange(scores.shape[1], device=scores.device) < self.beams
        self._end(
            grown,
            torch.where((words == EOS) & among_best, scores, NEG_INF) / (place + 1) ** self.power,
        )
        alive, order = torch.where(words == EOS, NEG_INF, scores).topk(self.beams, 1)
        done = torch.isfinite(self.marks).all(1, keepdim=True)
        if self.stop == "ahead":
            done &= alive[:, :1] / (place + 2) ** self.power <= self.marks[:, -1:]
        self.scores = alive.masked_fill(done, NEG_INF)
        self.words, self.place = grown[self.rows, order], place + 1
        return (parents.gather(1, order) + self.rows * self.beams).flatten()

    def _end(self, sentences: Tensor, marks: Tensor) -> None:
        marks = torch.cat([self.marks, marks], 1)
        self.marks, order = marks.topk(self.beams, 1)
        self.ended = torch.cat([self.ended, sentences], 1)[self.rows, order]

    def over(self) -> bool:
        return not bool(torch.isfinite(self.scores).any())

    def sentences(self) -> list[list[Hypothesis]]:
        found = []
        for marks, words in zip(self.marks.tolist(), self.ended.tolist(), strict=True):
            found.append(
                [
                    Hypothesis(_between(line), mark)
                    for mark, line in zip(marks, words, strict=True)
                    if mark > NEG_INF
                ]
            )
        return found


def _between(line: list[int]) -> list[int]:
    return line[1 : line.index(EOS)]


def _allowed(logits: Tensor, hunt: BeamState, place: int, block_trigrams: bool) -> Tensor:
    """Log-probabilities (B, K, V) of what may follow."""
    logp = _mask_forbidden(logits.float(), place, hunt.words.shape[2] - 2).view(
        hunt.count, hunt.beams, -1
    )
    if block_trigrams and place >= 3:
        logp = logp.masked_fill(_third_words(hunt.words[:, :, : place + 1], logp.shape[2]), NEG_INF)
        stuck = torch.isinf(logp).all(
            2, keepdim=True
        )  # nothing is left to say: then the sentence ends
        logp = torch.where(
            stuck & (torch.arange(logp.shape[2], device=logp.device) == EOS), 0.0, logp
        )
    return logp


def _mask_forbidden(logits: Tensor, place: int, max_words: int) -> Tensor:
    """Log-probabilities of the words that may stand at a place, the others dead."""
    banned = forbidden_tokens(place, 1, logits.shape[1], max_words, logits.device)
    # softmax over what may be said would hide how unsure the model is; only the banned words are taken out afterwards
    return torch.log_softmax(logits, 1).masked_fill(banned, NEG_INF)


def forbidden_tokens(
    place: int, count: int, vocabulary: int, max_words: int, device: torch.device
) -> Tensor:
    """(count, V), True for what cannot be said at each of `count` places from `place` on: special tokens, `<eos>` before
    the first word, anything but `<eos>` after the last. Made on the device: no recording may copy from the host."""
    words = torch.arange(vocabulary, device=device)
    places = torch.arange(place, place + count, device=device).unsqueeze(1)
    never = torch.stack([words == word for word in FORBIDDEN_TOKENS]).any(0)
    return never | ((places == 0) & (words == EOS)) | ((places == max_words) & (words != EOS))


def _third_words(words: Tensor, vocabulary: int) -> Tensor:
    """words (B, K, t) -> (B, K, V), True for a word that would make three in a row that stand there already."""
    triples = words.unfold(2, 3, 1)
    repeated = (triples[..., :2] == words[:, :, None, -2:]).all(3)
    mask = torch.zeros(*words.shape[:2], vocabulary, dtype=torch.bool, device=words.device)
    return mask.scatter(2, triples[..., 2] * repeated, repeated) if triples.shape[2] else mask
