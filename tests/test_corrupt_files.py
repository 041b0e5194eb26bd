"""Damaged files of a run folder: an error with the file and a hint, never a traceback."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from chat import small

from tarazu.captions.data.vocabulary import Vocabulary
from tarazu.chat.inference import trained_model
from tarazu.commands import run as study_commands
from tarazu.commands import tables
from tarazu.commands.export import export
from tarazu.commands.verify import verify
from tarazu.errors import TarazuError, UserError
from tarazu.storage.atomic_io import read_json, read_jsonl
from tarazu.storage.run_folder import RunDir, StudyDir

TRUNCATED, WRONG = '{"methods": ["lo', ["[1, 2]", '"text"', "7", "true"]


@pytest.mark.parametrize("content", [TRUNCATED, *WRONG, "", "\x00", "[" * 100_000])
def test_a_file_without_a_json_object_is_named_with_a_hint(tmp_path, content):
    path = tmp_path / "lora" / "seed-0" / "ledger.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert (
        caught.value.location == str(path)
        and str(path.parent) in caught.value.hint
        and "resume" in caught.value.hint
    )


def test_a_missing_file_and_null_give_the_default(tmp_path):
    (tmp_path / "x.json").write_text("null")
    assert read_json(tmp_path / "x.json", {}) == {} == read_json(tmp_path / "y.json", {})


def test_read_jsonl_skips_broken_lines_and_reports_binary_files(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"a": 1}\n[2]\n3\n{"b"')
    assert read_jsonl(tmp_path / "events.jsonl") == [{"a": 1}]
    (tmp_path / "events.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not readable as text"):
        read_jsonl(tmp_path / "events.jsonl")


@pytest.mark.parametrize(
    "content", [TRUNCATED, *WRONG, '{"methods": 3}', '{"methods": [["lora"]]}']
)
def test_damaged_method_order(tmp_path, content):
    (tmp_path / "method_order.json").write_text(content)
    with pytest.raises(UserError, match="method_order.json"):
        StudyDir(tmp_path).runs()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished study of one method."""
    root = tmp_path_factory.mktemp("finished")
    methods = {"lora": small.METHODS["lora"]}
    search = {"tokens": 2000, "learning_rate": [1e-3, 1e-2]}
    recipe = small.recipe(
        root / "recipe.yaml", small.save_model(root / "model"), methods=methods, search=search
    )
    return study_commands.run(
        str(recipe), str(root / "study"), overrides=["budget.tokens=3000"]
    ).path


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "study")


FILES = [
    "method_order.json",
    "data.json",
    "lora/seed-0/run.json",
    "lora/seed-0/ledger.json",
    "lora/seed-0/metrics.json",
]
DAMAGES = [(name, damage) for name in FILES for damage in ("truncated", "list")]
DAMAGES += [
    (name, "wrong values")
    for name in ("method_order.json", "lora/seed-0/ledger.json", "lora/seed-0/metrics.json")
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_resume_names_the_damaged_file(copied, name, damage):
    original = (copied / name).read_text()
    damaged = {
        "truncated": original[: len(original) // 2],
        "list": "[1]",
        "wrong values": json.dumps(dict.fromkeys(json.loads(original), "?")),
    }
    (copied / name).write_text(damaged[damage])
    with pytest.raises(UserError) as caught:
        study_commands.resume(str(copied))
    assert str(copied / name) in str(caught.value) and caught.value.hint


def test_resume_writes_a_missing_method_order(copied):
    before = (copied / "method_order.json").read_text()
    (copied / "method_order.json").unlink()
    study_commands.resume(str(copied))
    assert (copied / "method_order.json").read_text() == before


@pytest.mark.parametrize(
    "content",
    [TRUNCATED, "[]", '{"winner": {}}', '{"winner": {"learning_rate": "fast"}, "seconds": 1}'],
)
def test_a_damaged_search_has_no_winner(copied, content):
    (copied / "lora" / "search.json").write_text(content)
    shutil.rmtree(copied / "lora" / "seed-0")
    with pytest.raises(UserError, match="search.json"):
        study_commands.resume(str(copied))


@pytest.mark.parametrize(
    "content", ["methods: [", "- a", "task: 7", "task: chat\nbudget: 3", "\x00"]
)
def test_a_damaged_recipe_of_a_study(copied, content):
    (copied / "resolved.yaml").write_text(content)
    for command in (
        lambda: study_commands.resume(str(copied)),
        lambda: verify(str(copied), [], False, ""),
    ):
        with pytest.raises(UserError, match="resolved.yaml"):
            command()


@pytest.mark.parametrize(
    "content", [TRUNCATED, "[]", '{"task": "chess", "rows": []}', '{"task": "chat", "rows": 3}']
)
def test_damaged_results(copied, tmp_path, content):
    (copied / "results.json").write_text(content)
    with pytest.raises(UserError, match="results.json"):
        tables.print_results(copied)
    if 'rows": 3' not in content:
        with pytest.raises(UserError, match="results.json"):
            export(str(copied / "lora"), str(tmp_path / "out"), "")


def test_an_unknown_export_format_names_the_known_ones(copied, tmp_path):
    with pytest.raises(UserError, match="(?s)no such format.*--format merged or --format peft"):
        export(str(copied / "lora"), str(tmp_path / "out"), "gguf")


def test_verify_wants_a_study(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        verify(str(tmp_path), [], False, "")


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"words": 3}', b'{"words": ["a"], "min_count": 1}', b"\xff\xff"]
)
def test_a_damaged_vocabulary(content):
    with pytest.raises(UserError) as caught:
        Vocabulary.from_json(content, "DIR/vocabulary.json")
    assert "DIR/vocabulary.json" in str(caught.value) and "resume" in caught.value.hint


@pytest.mark.parametrize("content", ["[]", "7", "{", '{"state.json": 3}', '{"../run.json": ["x"]}'])
def test_a_checkpoint_with_a_damaged_manifest_is_skipped(tmp_path, content):
    from tarazu.engine import checkpoint

    checkpoint.save(tmp_path, 1, {}, {"a": 1})
    checkpoint.save(tmp_path, 2, {}, {"a": 2})
    (tmp_path / "step-00000002" / "manifest.json").write_text(content)
    _, state, complaints = checkpoint.load(tmp_path)
    assert state == {"a": 1} and "step-00000002 is damaged" in complaints[0]
    (tmp_path / "step-00000001" / "manifest.json").write_text(content)
    with pytest.raises(TarazuError, match="damaged"):
        checkpoint.load(tmp_path)


def test_a_flipped_byte_of_the_weights_is_detected(copied, tmp_path):
    weights = copied / "lora" / "seed-0" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1  # inside the last tensor: still a valid file
    weights.write_bytes(data)
    for use in (
        lambda: trained_model.load(str(copied / "lora")),
        lambda: export(str(copied / "lora"), str(tmp_path / "out"), ""),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert (
            f"the weights of {copied / 'lora'} (seed 0) are damaged" in str(caught.value)
            and "resume" in caught.value.hint
        )
    assert not (tmp_path / "out").exists()


def test_weights_without_a_hash_are_loaded(copied):
    (copied / "lora" / "seed-0" / "weights.sha256").unlink()
    assert trained_model.load(str(copied / "lora"))[2].done()


def test_the_hash_has_the_format_of_sha256sum(copied):
    folder = copied / "lora" / "seed-0"
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert (folder / "weights.sha256").read_text() == f"{digest}  weights.safetensors\n"


def test_a_run_is_addressed_by_its_folder(copied):
    assert RunDir(copied / "lora" / "seed-0").done()
