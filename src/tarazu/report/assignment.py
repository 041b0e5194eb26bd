"""Each item of the assignment and the place in the report that answers it."""

from __future__ import annotations

from dataclasses import dataclass

from tarazu.report.analysis.study_view import StudyView
from tarazu.report.render.bilingual import Bilingual, translate

SOFT, LOW_RANK = ("prompt_tuning", "prefix_tuning", "p_tuning"), ("lora", "rslora", "dora", "loha")
CHAT = {
    "T1.1": "data",
    "T1.2": "data-structure",
    "T1.3": "explain-slimorca-format",
    "T1.4": "model",
    "T1.5": "data-tokens",
    "T1.6": "before-training",
    "T2.1": "family-soft",
    "T2.2": "family-soft",
    "T2.3": "family-soft",
    "T2.4": "family-soft",
    "T2.5": "family-soft",
    "T2.6": "family-soft",
    "T3.1": "family-low_rank",
    "T3.2": "family-low_rank",
    "T3.3": "family-low_rank",
    "T4.1": "model-structure",
    "T4.2": "family-layers",
    "T4.3": "family-layers",
    "T5.1": "comparison",
    "T5.2": "recommendation",
}
CAPTIONS = {
    "C1.1": "data",
    "C1.2": "data-images",
    "C1.3": "data-words",
    "C1.4": "data-vocabulary",
    "C1.5": "data-vocabulary",
    "C1.6": "data-splits",
    "C1.7": "data-figures",
    "C2.1": "model",
    "C2.2": "method-kind-show_and_tell",
    "C2.3": "method-kind-show_and_tell",
    "C2.4": "method-kind-show_and_tell",
    "C2.5": "method-kind-show_and_tell",
    "C2.6": "method-kind-show_and_tell",
    "C3.1": "model",
    "C3.2": "method-kind-show_attend_tell",
    "C3.3": "method-kind-show_attend_tell",
    "C4.1": "explain-masking",
    "C4.2": "model",
    "C4.3": "method-kind-transformer",
    "C4.4": "method-kind-transformer",
    "C5.1": "explain-caption-metrics",
    "C5.2": "comparison-bleu",
    "C5.3": "baselines",
}
# Within the first method of the item's kinds: the heading of this part.
PARTS = {"T2.2": "settings", "T2.3": "proof", "T2.4": "issues", "T2.5": "curves", "T2.6": "after-training", "T3.3": "proof", "T4.3": "proof",
         "C2.5": "issues", "C2.6": "curves", "C3.3": "final", "C4.4": "curves"}  # fmt: skip
NEEDS = {"family-soft": SOFT, "family-low_rank": LOW_RANK, "family-layers": ("layers",)}


@dataclass(frozen=True)
class Item:
    """One item: its number, its title, where it is answered, and whether this study has it."""

    number: str
    title: Bilingual
    anchor: str
    there: bool


def items_of(study: StudyView) -> list[Item]:
    """The items of the study's task; one whose method was not run points at the methods' section and says so."""
    kinds = {method.kind for method in study.methods}
    found = []
    for number, anchor in (CAPTIONS if study.task == "captions" else CHAT).items():
        needs = NEEDS.get(anchor) or (
            (anchor.removeprefix("method-kind-"),) if anchor.startswith("method-kind-") else ()
        )
        if number == "C4.1":
            needs = ("transformer",)
        there = not needs or bool(kinds & set(needs))
        first = (
            next((method for method in study.methods if method.kind in needs), None)
            if number in PARTS
            else None
        )
        anchor = f"method-{first.name}-{PARTS[number]}" if first else anchor
        found.append(
            Item(number, translate(f"item.{number}"), anchor if there else "methods", there)
        )
    return found


def numbers_by_section(items: list[Item], anchors: list[str]) -> dict[str, list[str]]:
    """The items that each section answers, for its heading."""
    homes = {
        "family": "methods",
        "method": "methods",
        "explain": None,
        "model": "model",
        "data": "data",
        "comparison": "comparison",
    }
    named = {
        "explain-slimorca-format": "data",
        "explain-masking": "methods",
        "explain-caption-metrics": "comparison",
    }
    found: dict[str, list[str]] = {anchor: [] for anchor in anchors}
    for item in items:
        home = (
            item.anchor
            if item.anchor in found
            else named.get(item.anchor) or homes.get(item.anchor.partition("-")[0])
        )
        if home in found:
            found[home].append(item.number)
    return found
