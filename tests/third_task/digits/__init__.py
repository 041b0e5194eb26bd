"""A third task in one folder: classify noisy seven-segment digits with a small MLP."""

from tarazu.tasks import TaskEntry

TASK = TaskEntry(
    recipe="digits.settings:DigitsRecipe",
    task="digits.task:Digits",
    columns=(("loss", "loss", "{:.3f}"), ("accuracy", "accuracy", "{:.1%}")),
)
