"""Items of the assignment on image captioning and the places in the report that answer them."""

from tarazu.report.assignment import AssignmentItem


def _method(kind: str, part: str = "") -> AssignmentItem:
    """An item that the methods of one kind answer."""
    return AssignmentItem("methods", f"method-kind-{kind}", (kind,), part)


ASSIGNMENT = {
    "C1.1": AssignmentItem("data"),
    "C1.2": AssignmentItem("data", "data-images"),
    "C1.3": AssignmentItem("data", "data-words"),
    "C1.4": AssignmentItem("data", "data-vocabulary"),
    "C1.5": AssignmentItem("data", "data-vocabulary"),
    "C1.6": AssignmentItem("data", "data-splits"),
    "C1.7": AssignmentItem("data", "data-figures"),
    "C2.1": AssignmentItem("model"),
    "C2.2": _method("show_and_tell"),
    "C2.3": _method("show_and_tell"),
    "C2.4": _method("show_and_tell"),
    "C2.5": _method("show_and_tell", "issues"),
    "C2.6": _method("show_and_tell", "curves"),
    "C3.1": AssignmentItem("model"),
    "C3.2": _method("show_attend_tell"),
    "C3.3": _method("show_attend_tell", "final"),
    "C4.1": AssignmentItem("methods", "explain-masking", ("transformer",)),
    "C4.2": AssignmentItem("model"),
    "C4.3": _method("transformer"),
    "C4.4": _method("transformer", "curves"),
    "C5.1": AssignmentItem("comparison", "explain-caption-metrics"),
    "C5.2": AssignmentItem("comparison", "comparison-bleu"),
    "C5.3": AssignmentItem("baselines"),
}
