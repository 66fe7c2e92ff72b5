"""The paper's zero-shot results, to stand beside ours (arXiv 2407.12077; SPEC 8)."""

from collections.abc import Mapping

MODELS = ("Finch 1.60B", "Llama 1.47B", "GoldFinch 1.45B")
"""Trained on minipile: one pass, 1.5 billion tokens."""

ZERO_SHOT = {
    ("lambada_openai", "perplexity"): (81.9, 71.7, 48.2),
    ("lambada_openai", "acc"): (24.3, 26.3, 29.1),
    ("piqa", "acc"): (62.4, 61.6, 63.4),
    ("hellaswag", "acc"): (28.7, 28.1, 29.1),
    ("winogrande", "acc"): (49.0, 50.5, 50.2),
    ("arc_challenge", "acc"): (19.6, 19.3, 18.3),
    ("arc_easy", "acc"): (44.9, 43.9, 45.9),
    ("sciq", "acc"): (70.8, 71.0, 73.7),
}
"""(task, metric) -> of each of `MODELS`; accuracies in percent."""

AVERAGE = (42.8, 43.0, 44.2)
"""Of the accuracies, of each of `MODELS`."""


def average_accuracy(accuracies: Mapping[str, float]) -> float | None:
    """The mean over the paper's tasks; None unless all of them are there.

    >>> average_accuracy({task: 50.0 for task, metric in ZERO_SHOT if metric == "acc"})
    50.0

    Args:
        accuracies: task -> percent; tasks that are not the paper's are left out.
    """
    tasks = [task for task, metric in ZERO_SHOT if metric == "acc"]
    if not all(task in accuracies for task in tasks):
        return None
    return sum(accuracies[task] for task in tasks) / len(tasks)
