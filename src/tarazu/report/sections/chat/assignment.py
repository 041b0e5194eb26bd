"""Items of the assignment on instruction tuning and the places in the report that answer them."""

from tarazu.report.assignment import AssignmentItem

SOFT = ("prompt_tuning", "prefix_tuning", "p_tuning")
LOW_RANK = ("lora", "rslora", "dora", "loha")
LAYERS = ("layers",)

ASSIGNMENT = {
    "T1.1": AssignmentItem("data"),
    "T1.2": AssignmentItem("data", "data-structure"),
    "T1.3": AssignmentItem("data", "explain-slimorca-format"),
    "T1.4": AssignmentItem("model"),
    "T1.5": AssignmentItem("data", "data-tokens"),
    "T1.6": AssignmentItem("before-training"),
    "T2.1": AssignmentItem("methods", "family-soft", SOFT),
    "T2.2": AssignmentItem("methods", "family-soft", SOFT, "settings"),
    "T2.3": AssignmentItem("methods", "family-soft", SOFT, "proof"),
    "T2.4": AssignmentItem("methods", "family-soft", SOFT, "issues"),
    "T2.5": AssignmentItem("methods", "family-soft", SOFT, "curves"),
    "T2.6": AssignmentItem("methods", "family-soft", SOFT, "after-training"),
    "T3.1": AssignmentItem("methods", "family-low_rank", LOW_RANK),
    "T3.2": AssignmentItem("methods", "family-low_rank", LOW_RANK),
    "T3.3": AssignmentItem("methods", "family-low_rank", LOW_RANK, "proof"),
    "T4.1": AssignmentItem("model", "model-structure"),
    "T4.2": AssignmentItem("methods", "family-layers", LAYERS),
    "T4.3": AssignmentItem("methods", "family-layers", LAYERS, "proof"),
    "T5.1": AssignmentItem("comparison"),
    "T5.2": AssignmentItem("recommendation"),
}
