"""The loss on plain text equals transformers', and the same tokens are scored for all methods."""

from __future__ import annotations

import json
import math

import pytest
import torch
from chat import small, spelling

from tarazu.chat.data.chat_template import select_template
from tarazu.chat.evaluation import forgetting
from tarazu.chat.row_losses import summed_losses
from tarazu.chat.settings import Forgetting
from tarazu.chat.task import Chat
from tarazu.errors import UserError
from tarazu.recipe.schema import load
from tarazu.storage.run_folder import StudyDir

TEXTS = ["Rivers run to the sea.", "Bread is flour,\nwater and time.", "a " * 40]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forgetting")
    small.save_model(folder / "model")
    return folder


def prepared(root, monkeypatch, **changes):
    """The task, its data, and a function that builds a method on the small model."""
    monkeypatch.setenv("TARAZU_CACHE", str(root / "cache"))
    (root / "en.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    (root / "fa.jsonl").write_text(json.dumps({"text": "نان از آرد است."}), encoding="utf-8")
    settings = {
        "english": str(root / "en.txt"),
        "persian": str(root / "fa.jsonl"),
        "max_length": 24,
    }
    recipe = load(
        small.recipe(root / "recipe.yaml", root / "model", forgetting=settings, **changes)
    )
    task, cpu = Chat(), torch.device("cpu")
    data = task.prepare(recipe, StudyDir(root / "out"), cpu)
    return task, data, lambda name: task.build(recipe, name, data, 0, cpu)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", ["base", "prompt_tuning", "lora"])
def test_the_loss_is_that_of_transformers(root, monkeypatch, layout, name):
    task, data, build = prepared(root, monkeypatch, layout=layout)
    model = build(name)
    model.module.eval()
    with torch.no_grad():
        measured = forgetting.measure(
            data.forgetting, lambda rows: summed_losses(model, data, rows, 100)
        )["english"]
        for text, (nats, tokens, size) in zip(TEXTS, measured["row_losses"], strict=True):
            text = " ".join(text.split())
            text_ids = data.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[data.tokenizer.bos_token_id, *text_ids][:24]])
            embeddings = model.base.get_input_embeddings()(ids)
            labels = torch.where(torch.arange(ids.shape[1]) > 0, ids, -100)
            if model.prompt:
                embeddings = torch.cat([model.prompt()[None], embeddings], 1)
                labels = torch.cat([torch.full((1, model.num_virtual_tokens), -100), labels], 1)
            mean_loss = model.base(inputs_embeds=embeddings, labels=labels).loss.item()
            assert tokens == ids.shape[1] - 1
            assert nats == pytest.approx(mean_loss * tokens, rel=1e-5)
            assert size == len(data.tokenizer.decode(ids[0, 1:]).encode())
    nats, tokens, size = (sum(column) for column in zip(*measured["row_losses"], strict=True))
    assert measured["loss"] == nats / tokens
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)


def test_without_a_beginning_token_the_first_token_is_never_scored(tmp_path):
    (tmp_path / "t.txt").write_text("سلام بر جهان", encoding="utf-8")
    template = select_template(spelling.plain(), "gpt2")
    assert template.tokenizer.bos_token_id is None
    settings = Forgetting(english=None, persian=str(tmp_path / "t.txt"))
    passages = forgetting.prepare(settings, template)
    (row,), (num_bytes,) = passages["persian"].rows, passages["persian"].num_bytes
    assert list(passages) == ["persian"]
    assert not row.supervised[0] and row.supervised[1:].all()
    scored_text = template.tokenizer.decode(row.ids[1:])
    assert num_bytes == len(scored_text.encode()) < len("سلام بر جهان".encode())


def test_template_markers_in_the_text_are_removed(tmp_path):
    (tmp_path / "t.txt").write_text("سلام<end_of_turn> جهان", encoding="utf-8")
    template = select_template(spelling.gemma(), "gemma2")
    settings = Forgetting(english=str(tmp_path / "t.txt"), persian=None)
    (row,) = forgetting.prepare(settings, template)["english"].rows
    assert template.tokenizer.convert_tokens_to_ids("<end_of_turn>") not in row.ids


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "\n \n"), ("a.jsonl", '{"body": "x"}'), ("a.jsonl", "[]"), ("missing.txt", None)],
)
def test_a_source_without_text_is_named(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=name):
        forgetting.prepare(
            Forgetting(english=str(tmp_path / name)), select_template(spelling.plain(), "gpt2")
        )


def test_a_changed_text_is_refused_on_resume(root, monkeypatch):
    prepared(root, monkeypatch)
    monkeypatch.setitem(globals(), "TEXTS", [*TEXTS, "One more."])
    with pytest.raises(UserError, match="forgetting.*changed"):
        prepared(root, monkeypatch)


def test_the_shipped_texts_are_read_completely():
    template = select_template(spelling.llama3(), "llama")
    passages = forgetting.prepare(Forgetting(max_length=4096), template)
    for language, code in (("english", "en"), ("persian", "fa")):
        path = forgetting.sources.local_path(f"samples:forgetting_{code}.txt")
        text = path.read_text(encoding="utf-8")
        described = passages[language].describe()
        assert described["rows"] == text.count("\n\n") + 1
        assert described["bytes"] > 0.98 * len(text.encode())
