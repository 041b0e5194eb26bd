"""Correlation with people: the protocol on a small folder, the published values on Flickr8k."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from captions.written_captions import CANDIDATES, REFERENCES

from tarazu.captions.evaluation.human_correlation import (
    PUBLISHED,
    agreement,
    compare,
    main,
    read_folder,
)
from tarazu.errors import UserError

FLICKR8K = os.environ.get("TARAZU_FLICKR8K", "")  # the folder with Flickr8k's text files


@pytest.fixture
def folder(tmp_path):
    """Each image has a bad caption, of the next image, and a good one, the candidate."""
    images = list(REFERENCES)
    tokens = [
        f"{image}#{i}\t{caption}"
        for image, captions in REFERENCES.items()
        for i, caption in enumerate(captions)
    ]
    tokens += [f"extra-{image}#0\t{caption}" for image, caption in CANDIDATES.items()]
    with gzip.open(tmp_path / "Flickr8k.token.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(tokens) + "\n")
    rows = [
        f"{image}\t{other}#0\t1\t1\t2"
        for image, other in zip(images, images[1:] + images[:1], strict=True)
    ]
    rows += [f"{image}\textra-{image}#0\t3\t4\t4" for image in images]
    rows += [f"{images[0]}\t{images[0]}#1\t4\t4\t4"]  # the image's own caption
    (tmp_path / "ExpertAnnotations.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_an_images_own_captions_are_left_out(folder):
    rated, references, left_out = read_folder(folder)
    assert (len(rated), left_out) == (2 * len(REFERENCES), 1)
    assert references == {image: REFERENCES[image] for image in sorted(REFERENCES)}
    assert rated[0].points == (1, 1, 2)


def test_scores_correlate_with_clear_judgements(folder, capsys):
    result = compare(folder, with_meteor=False)
    assert result["judgements"] == 6 * len(REFERENCES)
    assert result["metrics"]["cider"]["tau_c"] > 50
    assert result["metrics"]["bleu4"]["published_tau_c"] == PUBLISHED["bleu4"]
    assert main([str(folder), "--no-meteor", "--json", str(folder / "out.json")]) == 0
    assert json.loads((folder / "out.json").read_text())["metrics"] == result["metrics"]
    assert "cider" in capsys.readouterr().out


def test_a_negated_score_correlates_negatively(folder):
    rated = read_folder(folder)[0]
    means = np.array([np.mean(pair.points) for pair in rated])
    tau = agreement(means, rated)["tau_b"]
    assert tau > 80 and agreement(-means, rated)["tau_b"] == pytest.approx(-tau)


@pytest.mark.parametrize(
    "line",
    ["beach.jpg\tbeach.jpg#0\t1\t1", "beach.jpg\tbeach.jpg#9\t1\t1\t1", "x\tbeach.jpg#0\t1\t2\t5"],
)
def test_a_bad_line_is_named(folder, line):
    (folder / "ExpertAnnotations.txt").write_text(f"beach.jpg\tstreet.jpg#0\t1\t1\t1\n{line}\n")
    with pytest.raises(UserError, match=r"ExpertAnnotations.txt:2"):
        read_folder(folder)


def test_a_missing_file_ends_with_code_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "Flickr8k.token.txt" in capsys.readouterr().err


@pytest.mark.skipif(
    not FLICKR8K, reason="set TARAZU_FLICKR8K to the folder with Flickr8k's text files"
)
def test_published_values_on_flickr8k():
    result = compare(Path(FLICKR8K), with_meteor=False)
    assert (result["pairs"], result["pairs_left_out"]) == (5664, 158)
    for name in ("bleu1", "bleu4", "rouge_l", "cider"):
        assert result["metrics"][name]["tau_c"] == pytest.approx(PUBLISHED[name], abs=0.2)
