"""The page: no network, no other script, valid links and figures, hostile text shown as text."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ET

import pytest
from pages import Page


@pytest.fixture(params=["chat", "captions", "hostile chat", "hostile captions"])
def made(request, reports):
    folder, path = reports[request.param]
    return folder, path.read_text(encoding="utf-8"), request.param


def test_page_loads_nothing_and_runs_only_its_own_script(made):
    folder, text, _ = made
    page = Page(text)
    assert page.open == []
    assert len(text.encode()) < 3_000_000
    policy = next(
        a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    running = [
        content
        for attributes, content in page.scripts
        if attributes.get("type") != "application/json"
    ]
    assert len(running) == 1
    digest = base64.b64encode(hashlib.sha256(running[0].encode()).digest()).decode()
    assert (
        policy.startswith("default-src 'none'")
        and f"'sha256-{digest}'" in policy
        and "unsafe" not in policy
    )
    allowed = {"html", "head", "meta", "title", "style", "body", "script"}
    for tag, attributes in page.elements:
        assert not [a for a in attributes if a.startswith("on")], (tag, attributes)
        assert tag in allowed or tag not in (
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "link",
        ), tag
        assert "style" not in attributes, (tag, attributes)
        link = attributes.get("href") or attributes.get("src") or ""
        assert re.match(r"(#|\./|figures/|https://arxiv\.org/|data:image/jpeg;base64,|$)", link), (
            link
        )


def test_anchors_exist_and_ids_are_unique(made):
    page = Page(made[1])
    assert len(page.ids) == len(set(page.ids))
    missing = {a["href"][1:] for a in page.named("a") if a.get("href", "").startswith("#")} - set(
        page.ids
    )
    assert not missing


def test_linked_files_exist(made):
    folder, text, kind = made
    links = {
        a["href"] for a in Page(text).named("a") if a.get("href", "").startswith(("./", "figures/"))
    }
    assert len(links) > 20
    assert not [
        link for link in links if not (folder / link).exists() and "vocabulary.json" not in link
    ]


def test_figures_are_well_formed_files(made):
    folder, text, _ = made
    drawings = sorted((folder / "figures").glob("*.svg"))
    assert len(drawings) >= 20
    for path in drawings:
        assert {
            node.tag.rpartition("}")[2]
            for node in ET.fromstring(path.read_text(encoding="utf-8")).iter()
        } <= {
            "svg",
            "g",
            "path",
            "rect",
            "line",
            "text",
            "tspan",
            "defs",
            "clipPath",
            "title",
        }
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_hostile_text_is_shown_as_text(made):
    _, text, kind = made
    page = Page(text)
    assert (
        len(page.named("script"))
        == len([s for s in page.scripts if s[0].get("type") == "application/json"]) + 1
    )
    assert not [a for a in page.named("img") if not a["src"].startswith("data:image/jpeg;base64,")]
    assert not re.search("[\u202a-\u202e\x00-\x08]", text)
    shown = "".join(page.text)
    if kind.startswith("hostile"):
        assert "document.title='owned'" in shown and "{{ 7*7 }}" in shown  # it is there, to be read
    if kind == "hostile chat":
        assert "of 20,000 characters" in shown and "(empty answer)" in shown


def test_both_languages_are_complete(made):
    page = Page(made[1])
    sides = {
        language: sum(a.get("lang") == language for _, a in page.elements)
        for language in ("fa", "en")
    }
    assert min(sides.values()) > 300
    spans = {
        language: sum(a.get("class") == language for _, a in page.elements)
        for language in ("fa", "en")
    }
    assert spans["fa"] == spans["en"] > 300
