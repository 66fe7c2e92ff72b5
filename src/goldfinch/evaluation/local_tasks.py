"""lm-eval's tasks on local data: task files that include the shipped ones, so that prompts and metrics are theirs."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml

from goldfinch.errors import UserError
from goldfinch.evaluation import moby_dick_tasks
from goldfinch.files import write_text
from goldfinch.settings import nearest

# Where lm-eval describes the paper's tasks: looking through all of its 14,000 files takes a quarter of a minute.
_FOLDERS = {
    "lambada_openai": "lambada",
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "headqa_en": "headqa",
    "mmlu": "mmlu/default",
    **{name: name for name in ("hellaswag", "openbookqa", "piqa", "sciq", "wikitext", "winogrande")},
}
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


def find_tasks(names: Sequence[str]) -> lm_eval.tasks.TaskManager:
    """lm-eval's tasks, groups and tags, all that is needed for these names.

    Raises:
        UserError: a name is unknown.
    """
    root = Path(lm_eval.tasks.__file__).parent
    bases = [moby_dick_tasks.TASKS[name][0] if name in moby_dick_tasks.TASKS else name for name in names]
    folders = [_FOLDERS.get("mmlu" if name.startswith("mmlu_") else name) for name in bases]
    known = [str(root / folder) for folder in dict.fromkeys(folders) if folder is not None]
    manager = lm_eval.tasks.TaskManager(include_path=known, include_defaults=False)
    if all(name in manager.task_index for name in bases):
        return manager
    manager = lm_eval.tasks.TaskManager()
    for name in bases:
        if name not in manager.task_index:
            near = nearest(name, [*manager.task_index, *moby_dick_tasks.TASKS])
            hint = f"did you mean {near}?" if near else "`python -m goldfinch.evaluation ls tasks` lists them"
            raise UserError(f"lm-eval has no task {name!r}; {hint}")
    return manager


def task_names(manager: lm_eval.tasks.TaskManager, names: Iterable[str]) -> list[str]:
    """The single tasks of these names, of which some are groups or tags."""
    result: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        entry = manager.task_index.get(name)
        if entry is None:
            continue  # lm-eval says what a group lacks
        if entry.tags and entry.yaml_path is None:
            waiting = [*sorted(entry.tags), *waiting]
        elif isinstance((entry.cfg or {}).get("task"), list):
            members = (each if isinstance(each, str) else each.get("task") for each in entry.cfg["task"])
            waiting = [*(each for each in members if isinstance(each, str)), *waiting]
        else:
            result[name] = None
    return list(result)


def use_local_data(
    manager: lm_eval.tasks.TaskManager,
    names: Sequence[str],
    data: Path | None,
    output: Path,
    num_fewshot: int | None = None,
) -> None:
    """Let tasks read local files: Moby-Dick's own, and those in `data`.

    Args:
        manager: of `find_tasks`; its tasks are replaced.
        names: tasks, groups and tags.
        data: folder with a folder for each single task, in which each split is a file such as `validation.jsonl`, with
            the fields of the original data; None leaves lm-eval's tasks as they are.
        output: folder for the task files, which `lm-eval --include_path` takes too.
        num_fewshot: examples that will be asked for; None for what each task says.

    Raises:
        UserError: a file is missing; the message says what to fetch and where to put it.
    """
    for name in names:
        if name in moby_dick_tasks.TASKS:
            base, split, documents = moby_dick_tasks.TASKS[name]
            path = output / name / f"{split}.jsonl"
            write_text(path, "".join(json.dumps(each) + "\n" for each in documents()))
            _replace(manager, name, base, {split: path}, output)
    if data is None:
        return
    for name in task_names(manager, names):
        if name in moby_dick_tasks.TASKS:
            continue
        config = manager.task_index[name].cfg or {}
        if "class" in config:
            raise UserError(f"{name} is a program of lm-eval, not a task file: it takes no --data")
        files = _find_files(config, data / name)
        missing = [split for split in needed_splits(config, num_fewshot) if split not in files]
        if missing:
            fetch = how_to_fetch(config, data, num_fewshot)
            raise UserError(f"{data / name} has no {missing[0]}.jsonl, .json or .parquet; {fetch}")
        _replace(manager, name, name, files, output)


def needed_splits(config: dict[str, Any], num_fewshot: int | None) -> list[str]:
    """The splits that a task is evaluated on and takes examples from."""
    needed = [config.get("test_split") or config.get("validation_split")]
    if (num_fewshot if num_fewshot is not None else config.get("num_fewshot")) or 0:
        needed.append(config.get("fewshot_split") or config.get("training_split") or config.get("validation_split"))
    return [split for split in dict.fromkeys(needed) if split]


def how_to_fetch(config: dict[str, Any], data: Path | None, num_fewshot: int | None = None) -> str:
    """What to do where a task's data is not at hand, as a part of an error message."""
    arguments = ", ".join(repr(each) for each in (config.get("dataset_path"), config.get("dataset_name")) if each)
    folder = (data or Path("data")) / str(config["task"])
    commands = [
        f"datasets.load_dataset({arguments}, split={split!r}).to_json({str(folder / f'{split}.jsonl')!r})"
        for split in needed_splits(config, num_fewshot)
    ]
    return f"where there is a network, run in Python: {'; '.join(commands)}"


def _find_files(config: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Split -> file, for the splits of a task that are there."""
    splits = [config[key] for key in _SPLITS if config.get(key)]
    paths = ((split, folder / f"{split}{suffix}") for split in splits for suffix in reversed(_BUILDERS))
    return {split: path.resolve() for split, path in paths if path.exists()}


def _replace(manager: lm_eval.tasks.TaskManager, name: str, base: str, files: dict[str, Path], output: Path) -> None:
    """Write the task file of a task that has the form of `base` and reads these files, and let it be used."""
    entry = manager.task_index[base]
    builders = {_BUILDERS[path.suffix] for path in files.values()}
    if len(builders) > 1:
        folder = next(iter(files.values())).parent
        raise UserError(f"{folder} has JSON and parquet files: all splits of a task must be of one kind")
    config = entry.cfg or {}
    content = {
        "include": str(entry.yaml_path),
        "task": name,
        "dataset_path": builders.pop(),
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path.resolve()) for split, path in files.items()}},
        **{key: None for key in _SPLITS if config.get(key) and config[key] not in files},
    }
    path = output / f"{name}.yaml"
    write_text(path, yaml.safe_dump(content, sort_keys=False))
    manager.task_index[name] = dataclasses.replace(entry, name=name, yaml_path=path, cfg=config | content)
