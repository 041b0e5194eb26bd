"""`tarazu run`, `resume` and `--extend`: a study with an estimate made before its first run."""

from __future__ import annotations

from collections.abc import Sequence

from tarazu.estimate.record import ESTIMATE_FILE, load_estimate, record_missing_estimates
from tarazu.recipe.schema import load
from tarazu.recipe.select import select_methods
from tarazu.storage.run_folder import StudyDir
from tarazu.study import runner
from tarazu.study.open_study import Study


def run(
    recipe_path: str,
    out: str,
    methods: Sequence[str] = (),
    overrides: Sequence[str] = (),
    estimate: str = "",
) -> StudyDir:
    """Start a new study.

    Args:
        recipe_path: the recipe's file.
        out: a new or empty folder.
        methods: only these of the recipe's methods; none: all.
        overrides: `a.b=c`, changes of single keys.
        estimate: a file that `tarazu check --out` wrote for this recipe; the study keeps it.

    Raises:
        UserError: the recipe, an option, the data or the model cannot be used.
        TarazuError: a run failed.
    """
    recipe = select_methods(load(recipe_path, overrides), methods)
    files = {ESTIMATE_FILE: load_estimate(estimate, recipe)} if estimate else {}
    return runner.run(recipe, recipe_path, out, _record_missing, files)


def extend(
    recipe_path: str, out: str, overrides: Sequence[str] = (), methods: Sequence[str] = ()
) -> StudyDir:
    """Add the methods and seeds of a recipe to a study.

    Raises:
        UserError: anything but methods and seeds differs, or an argument cannot be used.
        TarazuError: a run failed.
    """
    recipe = select_methods(load(recipe_path, overrides), methods)
    return runner.extend(recipe, out, _record_missing)


def resume(out: str) -> StudyDir:
    """Continue a study where it stopped.

    Raises:
        UserError: there is no study in the folder, or its data changed.
        TarazuError: a run failed.
    """
    return runner.resume(out, _record_missing)


def _record_missing(study: Study) -> None:
    """Predict the cost of every method that estimate.json does not have yet."""
    record_missing_estimates(study.recipe, study.data, study.device, study.folder)
