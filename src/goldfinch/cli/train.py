"""`goldfinch train`: settings from a preset or a recipe, config files and flags, later ones over earlier ones."""

import contextlib
import dataclasses
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
import yaml

from goldfinch.cli.arguments import parse
from goldfinch.cli.progress import TrainingDisplay
from goldfinch.cli.rope import rope_on_one_line
from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.presets import WORLD_VOCABULARY, model_config
from goldfinch.settings import from_plain, merge
from goldfinch.training.config import Cluster, TrainConfig, gold_only
from goldfinch.training.recipes import recipe, recipe_names, recipe_summary, settings_for

if TYPE_CHECKING:
    from goldfinch.training.parallel.processes import Processes

DEFAULT_PRESET = "goldfinch-L6-D256"
# Settings without a default: the flags must give them where no file does.
_REQUIRED: dict[str, Any] = {"data": "", "output": ""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model: goldfinch train [PRESET] --data DIR -o RUN, or goldfinch train --resume RUN.

    From the weights of another model: goldfinch train --initial MODEL --data DIR -o RUN.

    Every setting below can be given here, or in a yaml or json file with the same names (--config). The defaults
    shown are those of the preset or recipe and the files given before --help.
    """

    preset: tyro.conf.Positional[str] = DEFAULT_PRESET
    """KIND-SIZE, such as goldfinch-L6-D256; `goldfinch info` lists them."""
    recipe: str | None = None
    """A whole run by name instead of a preset, such as paper/L12-D768-goldfinch; `list` shows them."""
    config: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FILE")] = ()
    """yaml or json file with settings; may be given several times. A run's training.json is one."""
    resume: Path | None = None
    """Go on with this run from its newest checkpoint."""
    train_only: Literal["gold"] | None = None
    """gold: train the GOLD layers, the last norm and the head, and freeze everything below; with --initial. Steps are
    cheaper, and saved contexts stay valid. Sets --optimizer.learning-rate-multipliers; yours are added after these."""
    dry_run: bool = False
    """Do not train, but tell what the run would take: parameters, memory, FLOPs, days. Needs no data and no output."""
    cluster: Annotated[Cluster, tyro.conf.arg(name="")] = Cluster()
    """What --dry-run reckons with."""
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")]
    """The run."""


def main(args: list[str]) -> None:
    """Parse, train, and name the next command; started by torchrun, together with the other processes."""
    if _values(args, "--recipe")[-1:] == ["list"]:
        _list_recipes()
        return
    # Before torch is loaded, a mistake is told at once; among several processes it is told by one of them.
    train = resolve(args) if not _started_by_torchrun() or {"-h", "--help"} & set(args) else None

    from goldfinch.training.parallel.processes import join_processes

    with join_processes() as processes:
        with processes.fail_together():
            train = train or resolve(args)
        if train.dry_run:
            from goldfinch.cli.dry_run import print_dry_run

            print_dry_run(train.recipe or train.preset, train.settings, train.cluster)
        else:
            _train(train.settings, train.resume is not None, processes)


def _started_by_torchrun() -> bool:
    """Asked of the environment, as `join_processes` does: that would load torch."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _train(config: TrainConfig, resume: bool, processes: "Processes") -> None:
    from goldfinch.training.trainer import Trainer

    display = TrainingDisplay()
    with display if processes.is_main else contextlib.nullcontext():
        result = Trainer(config, display, resume, processes).train()
    if not processes.is_main:
        return
    print(
        f"\nvalidation: {result.loss:.4f} nats per token, {result.bits_per_byte:.4f} bits per byte "
        f"({result.tokens:,} tokens)\n"
        f"loss plot:  {config.output / 'loss.png'}\n"
        f'next:       goldfinch generate {config.output} "Once upon a time"'
    )


def resolve(args: list[str]) -> Train:
    """What the arguments ask for.

    Tyro parses the flags; what stands before them (run to resume, or preset and files) is looked up first, because it
    decides the defaults that the flags override.
    """
    args = ["--output" if arg == "-o" else arg for arg in args]
    preset = args[0] if args and not args[0].startswith("-") else None
    named = _values(args, "--recipe")
    if named and preset:
        raise UserError(f"{preset} and --recipe {named[-1]} are two models: give one of them")
    files = [(Path(path), _read_file(Path(path))) for path in _values(args, "--config")]
    resume = _values(args, "--resume")
    if named and resume:
        raise UserError(f"{resume[-1]} goes on with its own settings: leave --recipe out")
    if resume:
        from goldfinch.training.run.folder import read_settings

        values = read_settings(Path(resume[-1])).to_dict() | {"output": resume[-1]}
    else:
        initial = [content["initial"] for _, content in files if content.get("initial")] + _values(args, "--initial")
        data = [content["data"] for _, content in files if content.get("data")]
        sources = _values(args, "--data") or (data[-1] if data else None)
        if initial:
            model = _initial_model(Path(initial[-1]), args)
            values = recipe(named[-1]) if named else settings_for(model)
            values |= {"model": model.to_dict()}
        else:
            vocab_size = _vocabulary(sources) if sources else WORLD_VOCABULARY
            if named:
                values = recipe(named[-1], vocab_size)
            else:
                model = model_config(preset or DEFAULT_PRESET, vocab_size)
                values = {"model": model.to_dict(), **settings_for(model)}
        values = _REQUIRED | values
    for path, content in files:
        values = merge(values, content)
        try:
            from_plain(TrainConfig, values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    dry = {"--dry-run", "--dry_run"} & set(args)
    required = {name: tyro.MISSING for name in _REQUIRED if not values[name] and not dry}
    default = dataclasses.replace(from_plain(TrainConfig, values), **required)
    options = {
        "default": Train(preset=preset or DEFAULT_PRESET, settings=default),
        "registry": rope_on_one_line(default.model.rope, "model.rope"),
    }
    train = parse(Train, "train", args, **options)
    if train.train_only == "gold":
        settings = train.settings
        rates = gold_only(settings.model) + settings.optimizer.learning_rate_multipliers
        settings = dataclasses.replace(
            settings, optimizer=dataclasses.replace(settings.optimizer, learning_rate_multipliers=rates)
        )
        train = dataclasses.replace(train, settings=settings)
    return train


def _list_recipes() -> None:
    width = max(map(len, recipe_names()))
    print("\n".join(f"{name:<{width}}  {recipe_summary(name)}" for name in recipe_names()))


def _values(args: list[str], flag: str) -> list[str]:
    """What the arguments give for `flag`, as `--flag value ...` or `--flag=value`."""
    values: list[str] = []
    for place, arg in enumerate(args):
        if arg == flag:
            values += itertools.takewhile(lambda value: not value.startswith("-"), args[place + 1 :])
        elif arg.startswith(f"{flag}="):
            values.append(arg.partition("=")[2])
    return values


def _initial_model(folder: Path, args: list[str]) -> ModelConfig:
    """The model that a run with `--initial` starts from, which takes the place of a preset."""
    from goldfinch.checkpoint.model_folder import read_config

    if args and not args[0].startswith("-"):
        raise UserError(f"--initial takes the model of {folder}: leave out the preset {args[0]}")
    return read_config(folder)


def _vocabulary(data: str | list[str]) -> int:
    """The data's vocabulary, which the model takes over unless told otherwise."""
    from goldfinch.data.mixture import Source
    from goldfinch.data.shards import Index

    first = Source.parse(data if isinstance(data, str) else data[0])
    return Index.load(Path(first.folder)).vocab_size


def _read_file(path: Path) -> dict[str, Any]:
    """The settings in a yaml or json file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # json is yaml
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the config file {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a mapping of settings, such as `steps: 1000`")
    return content
