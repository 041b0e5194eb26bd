"""Without a network, a name of the model hub gives one clear error within seconds."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from tarazu.chat.data.sources import iter_rows
from tarazu.chat.model.loading import load_tokenizer
from tarazu.errors import UserError
from tarazu.storage import hub_status


@pytest.fixture
def no_network(monkeypatch):
    def unknown(*_args, **_options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_status.hub_is_reachable.cache_clear()
    yield
    hub_status.hub_is_reachable.cache_clear()


def test_a_model_of_the_hub_fails_fast_with_a_hint(no_network):
    started = time.monotonic()
    with pytest.raises(
        UserError,
        match=r"(?s)nobody/no-such-model: .*hub does not answer.*local folder.*gemma-3-270m",
    ):
        load_tokenizer("nobody/no-such-model")
    assert time.monotonic() - started < 5


def test_rows_of_the_hub_fail_fast_with_a_hint(no_network):
    with pytest.raises(
        UserError, match=r"(?s)nobody/no-such-rows: .*does not answer.*--set data.source=PATH"
    ):
        next(iter(iter_rows("nobody/no-such-rows")))


def test_images_and_encoder_of_the_hub_fail_fast_with_a_hint(no_network, tmp_path):
    from tarazu.captions.data import hub_dataset
    from tarazu.captions.encoder.pretrained import load
    from tarazu.captions.settings import EncoderSettings

    with pytest.raises(UserError, match=r"(?s)nobody/no-such-set: .*does not answer.*FOLDER"):
        hub_dataset.read("nobody/no-such-set", tmp_path)
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be downloaded"):
        load(EncoderSettings(name="efficientnet-b0"))
    assert time.monotonic() - started < 5


def test_a_reachable_hub_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.get_session",
        lambda: type("S", (), {"head": lambda self, url, timeout: asked.append(url)})(),
    )
    hub_status.hub_is_reachable.cache_clear()
    assert (
        hub_status.hub_is_reachable()
        and hub_status.hub_is_reachable()
        and asked == [constants.ENDPOINT]
        and not constants.HF_HUB_OFFLINE
    )
    hub_status.hub_is_reachable.cache_clear()
