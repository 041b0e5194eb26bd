"""Items of the assignment, and the places in the report that answer them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tarazu.report.analysis.study_view import StudyView
from tarazu.report.render.bilingual import Bilingual, translate


@dataclass(frozen=True)
class AssignmentItem:
    """Where the report answers an item.

    Args:
        section: the anchor of the section that answers it.
        anchor: the place in that section; empty for the section itself.
        kinds: the kinds of method that the item is about; a study that ran none lacks the item.
        part: within the first method of these kinds, the part that answers the item.
    """

    section: str
    anchor: str = ""
    kinds: tuple[str, ...] = ()
    part: str = ""


@dataclass(frozen=True)
class Item:
    """An item as the page shows it; `in_study` is False where its methods were not run."""

    number: str
    title: Bilingual
    section: str
    anchor: str
    in_study: bool


def items_of(study: StudyView, assignment: Mapping[str, AssignmentItem]) -> list[Item]:
    """The items of a task. An item whose methods were not run points at the methods' section."""
    items = []
    for number, item in assignment.items():
        methods = [method for method in study.methods if method.kind in item.kinds]
        in_study = bool(methods) or not item.kinds
        section = item.section if in_study else "methods"
        if not in_study:
            anchor = section
        elif item.part and methods:
            anchor = f"method-{methods[0].name}-{item.part}"
        else:
            anchor = item.anchor or section
        items.append(Item(number, translate(f"item.{number}"), section, anchor, in_study))
    return items


def numbers_by_section(items: list[Item], sections: list[str]) -> dict[str, list[str]]:
    """The numbers of the items that each section answers, for its heading."""
    numbers: dict[str, list[str]] = {section: [] for section in sections}
    for item in items:
        if item.section in numbers:
            numbers[item.section].append(item.number)
    return numbers
