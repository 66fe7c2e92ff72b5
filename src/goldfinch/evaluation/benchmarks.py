"""Running lm-eval's tasks, keeping all that it writes, and a table with the paper's numbers beside ours."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.utils import handle_non_serializable

from goldfinch.errors import UserError
from goldfinch.evaluation import paper
from goldfinch.evaluation.harness import GoldFinchLM
from goldfinch.evaluation.local_tasks import find_tasks, how_to_fetch, task_names, use_local_data
from goldfinch.evaluation.scheduler import TokenCounts
from goldfinch.experiments.markdown import markdown_table
from goldfinch.files import one_line, write_text
from goldfinch.training.parallel.processes import SINGLE_PROCESS, Processes

TASKS, TABLE = "tasks", "results.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What is evaluated, and how."""

    tasks: tuple[str, ...]
    """Names of tasks, groups and tags."""
    data: Path | None = None
    """Folder of local data, as in `use_local_data`."""
    limit: int | None = None
    """Maximum number of documents of each task."""
    num_fewshot: int | None = None
    """Examples before each question; None for what the task says."""
    apply_chat_template: bool = False
    """Whether prompts are written as conversations."""
    use_cache: Path | None = None
    """SQLite file of finished answers: the same evaluation continues where it was interrupted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The results of a run."""

    results: dict[str, Any]
    """As lm-eval writes them, without samples."""
    counts: TokenCounts
    """Of all processes."""

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Lines of the table: task, metric, value, standard error and the paper's three models.

        Accuracies and their errors are percentages. The paper's numbers stand beside the same tasks without examples.
        """
        rows, accuracies = [], {}
        for task, metrics in self.results["results"].items():
            is_zero_shot = not self.results.get("n-shot", {}).get(task)
            for key, value in metrics.items():
                metric, _, filter_ = key.partition(",")
                if not isinstance(value, float) or metric.endswith("_stderr"):
                    continue
                is_accuracy = metric.startswith("acc") or metric == "exact_match"
                scale, digits = (100, 1) if is_accuracy else (1, 2)
                error = metrics.get(f"{metric}_stderr,{filter_}")
                shown_error = f"{error * scale:.{digits}f}" if isinstance(error, float) else ""
                theirs = paper.ZERO_SHOT.get((task, metric)) if is_zero_shot else None
                if theirs is not None and metric == "acc":
                    accuracies[task] = value * scale
                beside = ("",) * len(paper.MODELS) if theirs is None else tuple(f"{each:.1f}" for each in theirs)
                rows.append((task, metric, f"{value * scale:.{digits}f}", shown_error, *beside))
        average = paper.average_accuracy(accuracies)
        if average is not None:
            rows.append(("average of the paper's", "acc", f"{average:.1f}", "", *(f"{x:.1f}" for x in paper.AVERAGE)))
        return rows

    @property
    def headings(self) -> tuple[str, ...]:
        """Of the columns of `rows`."""
        return ("task", "metric", "value", "±", *(f"paper, {name}" for name in paper.MODELS))


def evaluate_tasks(
    lm: GoldFinchLM, settings: TaskSettings, output: Path, processes: Processes = SINGLE_PROCESS
) -> Evaluation | None:
    """Evaluate a model on lm-eval's tasks.

    Args:
        lm: the model.
        settings: the tasks.
        output: folder for lm-eval's files (results_DATE.json, samples_TASK_DATE.jsonl), the task files of local data,
            and results.md, the table.
        processes: this process among those that share the documents; all must call this.

    Returns:
        The results; None in all processes but the main one.

    Raises:
        UserError: a task is unknown, its data is missing, or the results cannot be written.
    """
    with _quiet():
        manager = find_tasks(settings.tasks)
        files = output / TASKS / f"{processes.rank}" if processes.world_size > 1 else output / TASKS
        use_local_data(manager, settings.tasks, settings.data, files, settings.num_fewshot)
        loaded = [_load(manager, name, settings) for name in settings.tasks]
        # A file name lets lm-eval write into the folder itself, not into one named after the model.
        tracker = EvaluationTracker(output_path=str(output / "results.json"))
        results = simple_evaluate(
            model=lm,
            tasks=[task for group in loaded for task in group],
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            apply_chat_template=settings.apply_chat_template,
            use_cache=None if settings.use_cache is None else str(settings.use_cache),
            evaluation_tracker=tracker,
        )
    asked, computed = processes.all_reduce_sum(lm.counts.asked, lm.counts.computed)
    if results is None:
        return None
    counts = TokenCounts(asked=int(asked), computed=int(computed))
    samples = results.pop("samples")
    results["config"] |= {"tokens_asked": counts.asked, "tokens_computed": counts.computed}
    _save(tracker, results, samples, output)
    results = json.loads(json.dumps(results, default=handle_non_serializable))  # functions of task files as their names
    evaluation = Evaluation(results=results, counts=counts)
    write_text(output / TABLE, _markdown(lm, settings, evaluation))
    return evaluation


def _load(manager: Any, name: str, settings: TaskSettings) -> list[Any]:
    """Build a task, group or tag, with its data."""
    try:
        loaded = manager.load([name])
    except UserError:
        raise
    except Exception as error:  # of any library that reads or fetches data
        first = task_names(manager, [name])[:1]
        config = (manager.task_index[first[0]].cfg if first else None) or {"task": name}
        fetch = how_to_fetch(config, settings.data, settings.num_fewshot)
        raise UserError(
            f"cannot load the data of {name} ({one_line(error)[:200]}); {fetch}, then add --data"
        ) from error
    return [loaded["groups"][name]] if name in loaded["groups"] else list(loaded["tasks"].values())


def _save(tracker: EvaluationTracker, results: dict[str, Any], samples: dict[str, Any], output: Path) -> None:
    before = set(output.glob("*.json*"))
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    written = set(output.glob("*.json*")) - before
    if len(written) < 1 + len(results["configs"]):  # lm-eval itself only warns
        raise UserError(f"cannot write the results to {output}: is the disk full?")


def _markdown(lm: GoldFinchLM, settings: TaskSettings, evaluation: Evaluation) -> str:
    facts = [f"Model: {lm.language_model!r}.", f"{evaluation.counts.summary()}."]
    if settings.limit is not None:
        facts.append(f"**The first {settings.limit:,} documents of each task only.**")
    if settings.num_fewshot is not None:
        facts.append(f"Examples before each question: {settings.num_fewshot}.")
    parts = [
        "# Evaluation",
        "\n".join(facts),
        markdown_table(evaluation.headings, evaluation.rows, words=2),
        "Accuracies in percent; ±: standard error. The paper's columns: zero-shot, models trained on 1.5 billion "
        "tokens. Settings and all answers: the JSON files beside this one.",
    ]
    return "\n\n".join(parts) + "\n"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's and datasets' remarks on what is done on purpose."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
