"""Caveats: what limits the conclusions of a study, found from its folder."""

from __future__ import annotations

from markupsafe import Markup

from tarazu.report.analysis.study_view import StudyView, dicts_in, get_path, seeds_of
from tarazu.report.render.bilingual import Bilingual, code, joined, number, translate
from tarazu.report.render.known_messages import translate_known, translate_note
from tarazu.report.sections.common.base import Context
from tarazu.report.sections.common.hyperparameter_search import search_tokens
from tarazu.report.sections.common.method_names import joined_code

SMALL_TEST = 100  # a test split with fewer rows cannot show small differences


def caveats(context: Context) -> list[Bilingual]:
    """Every caveat of the study, those of the data first."""
    study = context.study
    sentences = [
        *_data_caveats(study),
        *_seed_caveats(study),
        *_test_caveats(context),
        *_search_caveats(study),
    ]
    rows_differ = context.comparison.rows_differ
    if rows_differ:
        sentences.append(translate("caveat.rows_differ", methods=joined_code(rows_differ)))
    if not any(method.search for method in study.methods):
        sentences.append(translate("caveat.no_search"))
    if get_path(study.environment, "device", "type") == "cpu":
        sentences.append(translate("caveat.cpu"))
    sentences += _part_caveats(study)
    if any(run.status != "done" for method in study.methods for run in method.runs):
        sentences.append(translate("caveat.unfinished"))
    if study.problems:
        sentences.append(translate("caveat.unreadable", files=joined_code(study.problems)))
    return sentences


def _data_caveats(study: StudyView) -> list[Bilingual]:
    """Notes on the data and on the encoder's weights."""
    sentences = []
    if study.data.get("note"):
        sentences.append(translate("caveat.note", note=translate_note(study.data["note"])))
    weights_note = get_path(study.model, "encoder", "weights_note")
    if weights_note:
        sentences.append(translate("caveat.note", note=translate_known(weights_note)))
    return sentences


def _seed_caveats(study: StudyView) -> list[Bilingual]:
    """One seed only, different numbers of seeds, or seeds of the recipe that no method has."""
    sentences = []
    if all(len(method.runs) == 1 for method in study.methods):
        sentences.append(translate("caveat.one_seed"))
    elif len({len(method.measured) for method in study.methods}) > 1:
        sentences.append(translate("caveat.uneven_seeds"))
    missing = missing_seeds(study)
    if missing:
        count = number(len(missing), "count")
        sentences.append(translate("caveat.missing_seeds", n=count, seeds=_seed_list(missing)))
    return sentences


def missing_seeds(study: StudyView) -> list[int]:
    """Seeds of the recipe that no method has finished; none where nothing has finished."""
    finished = {run.seed for method in study.methods for run in method.measured}
    asked = get_path(study.settings, "seeds", default=[]) if finished else []
    return [seed for seed in asked if isinstance(seed, int) and seed not in finished]


def _seed_list(seeds: list[int]) -> Bilingual:
    return joined([number(seed, "count") for seed in seeds])


def _test_caveats(context: Context) -> list[Bilingual]:
    """A test split that is too small for small differences."""
    rows = next((interval.rows for interval in context.comparison.intervals.values()), None)
    if rows is None or rows >= SMALL_TEST:
        return []
    return [translate("caveat.small_test", rows=number(rows, "count"))]


def _search_caveats(study: StudyView) -> list[Bilingual]:
    """Searches of different cost, and winners at an edge of the searched values."""
    sentences, tokens = [], search_tokens(study)
    if tokens and tokens[0] < tokens[-1]:
        ends = {"min": number(tokens[0], "count"), "max": number(tokens[-1], "count")}
        sentences.append(translate("caveat.search_uneven", **ends))
    at_edge = [method.name for method in study.methods if method.search.get("edges")]
    if at_edge:
        sentences.append(translate("caveat.edges", methods=joined_code(at_edge)))
    return sentences


def _part_caveats(study: StudyView) -> list[Bilingual]:
    """For a study that `tarazu merge` made: what ran where, and whether times are comparable."""
    parts = dicts_in(study.environment.get("parts"))
    if len(parts) < 2:
        return []
    devices = [get_path(part, "device", "name") or "?" for part in parts]
    named = [
        translate("caveat.part", device=code(device), methods=joined(_part_methods(part, parts)))
        for device, part in zip(devices, parts, strict=True)
    ]
    sentences = [translate("caveat.parts", n=number(len(parts), "count"), parts=joined(named))]
    if len(set(devices)) > 1:
        sentences.append(translate("caveat.parts_differ"))
    return sentences


def _part_methods(part: dict, parts: list[dict]) -> list[Bilingual | Markup]:
    """The methods of a part, with the seeds of those that another part has too."""
    in_other_parts = {
        str(name)
        for other in parts
        if other is not part
        for name in get_path(other, "methods", default=[])
    }
    names: list[Bilingual | Markup] = []
    for name in map(str, get_path(part, "methods", default=[])):
        seeds = seeds_of(part, name) if name in in_other_parts else []
        if seeds:
            names.append(translate("caveat.part_seeds", method=code(name), seeds=_seed_list(seeds)))
        else:
            names.append(code(name))
    return names
