"""The page: no network, no other script, valid links and figures, hostile text shown as text."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import pytest
from pages import Page, says

FORBIDDEN_TAGS = {"iframe", "object", "embed", "base", "form", "link"}
SVG_TAGS = {
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
LINK = re.compile(r"(#|\./|figures/|https://arxiv\.org/|data:image/jpeg;base64,|$)")


class Report(NamedTuple):
    """A report: the study's name and folder, the page as HTML and as its elements."""

    name: str
    folder: Path
    html: str
    page: Page


@pytest.fixture(params=["chat", "captions", "hostile chat", "hostile captions"])
def report(request, reports):
    folder, path = reports[request.param]
    html = path.read_text(encoding="utf-8")
    return Report(request.param, folder, html, Page(html))


def test_page_is_well_formed_and_small(report):
    assert report.page.open == [] and len(report.html.encode()) < 3_000_000


def test_page_runs_only_its_own_script(report):
    metas = report.page.named("meta")
    policy = next(m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy")
    (script,) = (
        text
        for attributes, text in report.page.scripts
        if attributes.get("type") != "application/json"
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"'sha256-{digest}'" in policy and "unsafe" not in policy
    for tag, attributes in report.page.elements:
        assert tag not in FORBIDDEN_TAGS and "style" not in attributes, (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)


def test_page_links_only_to_itself_its_files_and_papers(report):
    for _, attributes in report.page.elements:
        link = attributes.get("href") or attributes.get("src") or ""
        assert LINK.match(link), link


def test_anchors_exist_and_ids_are_unique(report):
    ids = set(report.page.ids)
    assert len(report.page.ids) == len(ids)
    anchors = [a["href"] for a in report.page.named("a") if a.get("href", "").startswith("#")]
    assert {anchor[1:] for anchor in anchors} <= ids


def test_linked_files_exist(report):
    links = {a.get("href", "") for a in report.page.named("a")}
    files = {link for link in links if link.startswith(("./", "figures/"))}
    assert len(files) > 20
    missing = [file for file in files if not (report.folder / file).exists()]
    assert not [file for file in missing if "vocabulary.json" not in file]


def test_figures_are_well_formed_files(report):
    charts = sorted((report.folder / "figures").glob("*.svg"))
    assert len(charts) >= 20
    for path in charts:
        tree = ET.fromstring(path.read_text(encoding="utf-8"))
        assert {node.tag.rpartition("}")[2] for node in tree.iter()} <= SVG_TAGS
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_hostile_text_is_shown_as_text(report):
    page, text = report.page, "".join(report.page.text)
    assert len(page.named("script")) == len(page.scripts)
    assert not [i for i in page.named("img") if not i["src"].startswith("data:image/jpeg;base64,")]
    assert not re.search("[\u202a-\u202e\x00-\x08]", report.html)
    if report.name.startswith("hostile"):
        assert "document.title='owned'" in text and "{{ 7*7 }}" in text
    if report.name == "hostile chat":
        assert says(text, "common.cut", total="20,000") and says(text, "answers.empty")


def test_both_languages_are_complete(report):
    elements = [attributes for _, attributes in report.page.elements]
    for language in ("fa", "en"):
        assert sum(attributes.get("lang") == language for attributes in elements) > 300
    spans = [sum(a.get("class") == language for a in elements) for language in ("fa", "en")]
    assert spans[0] == spans[1] > 300
