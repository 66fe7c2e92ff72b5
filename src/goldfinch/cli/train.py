"""`goldfinch train`: settings from a preset or a recipe, config files and flags, each overriding those before."""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from goldfinch.cli.arguments import parse, parse_known, require_model, require_path
from goldfinch.cli.progress import TrainingDisplay
from goldfinch.cli.rope import rope_on_one_line
from goldfinch.errors import UserError
from goldfinch.json_yaml import read_yaml
from goldfinch.presets import WORLD_VOCABULARY, model_config
from goldfinch.settings import from_plain, merge
from goldfinch.training.config import Cluster, TrainConfig, gold_only
from goldfinch.training.recipes import recipe, recipe_names, recipe_summary, settings_for

if TYPE_CHECKING:
    from goldfinch.training.parallel.processes import Processes

DEFAULT_PRESET = "goldfinch-L6-D256"
# Settings without a default, which a file or a flag must give.
_REQUIRED: dict[str, Any] = {"data": "", "output": ""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Settings(TrainConfig):
    """TrainConfig with the command line's short flags."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Output folder: weights, checkpoints, metrics, samples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sources:
    """The arguments that decide which settings the flags override."""

    presets: tyro.conf.Positional[tuple[str, ...]] = ()
    recipe: str = ""
    config: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    resume: Path | None = None
    initial: Path | None = None
    data: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def preset(self) -> str:
        """Empty if none is given."""
        return self.presets[0] if self.presets else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model: goldfinch train [PRESET] --data DIR -o RUN, or goldfinch train --resume RUN.

    From the weights of another model: goldfinch train --initial MODEL --data DIR -o RUN.

    Every setting below can be given as a flag, or in a YAML or JSON file with the same names (--config). The defaults
    shown are those of the preset or recipe and the files given before --help.
    """

    preset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRESET")] = DEFAULT_PRESET
    """KIND-SIZE, such as goldfinch-L6-D256; `goldfinch info` lists them."""
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Complete settings by name instead of a preset, such as paper/L12-D768-goldfinch; `list` shows all recipes."""
    config: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FILE")] = ()
    """YAML or JSON file with settings; may be given several times. The training.json of a run is such a file."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Resume this run from its newest checkpoint."""
    train_only: Annotated[Literal["gold"] | None, tyro.conf.arg(metavar="gold")] = None
    """gold: train the GOLD layers, the last norm and the head, and freeze everything below; with --initial. Steps are
    cheaper, and saved contexts stay valid. Sets --optimizer.learning-rate-multipliers; yours are added after these."""
    overwrite: bool = False
    """Remove the run that the output folder holds, once the new one can begin. Other files there are never removed."""
    dry_run: bool = False
    """Do not train, but print what the run would take: parameters, memory, FLOPs, days. Needs no data and no output."""
    json: bool = False
    """With --dry-run: print JSON instead of a table."""
    cluster: Annotated[Cluster, tyro.conf.arg(name="")] = Cluster()
    """Hardware and data that --dry-run assumes."""
    settings: Annotated[TrainConfig, tyro.conf.arg(name="", constructor=_Settings)]
    """The run."""


def main(args: list[str]) -> None:
    """Parse, train, and print the next command; started by torchrun, together with the other processes."""
    if _sources(args).recipe == "list":
        _list_recipes()
        return
    # Mistakes are reported before torch is loaded; among several processes, by one of them.
    train = resolve(args) if not _started_by_torchrun() or {"-h", "--help"} & set(args) else None

    from goldfinch.training.parallel.processes import join_processes

    with join_processes() as processes:
        with processes.fail_together():
            train = train or resolve(args)
        if train.dry_run:
            from goldfinch.cli.dry_run import print_dry_run

            print_dry_run(train.recipe or train.preset, train.settings, train.cluster, as_json=train.json)
        else:
            _train(train, processes)


def _started_by_torchrun() -> bool:
    """Look at the environment as `join_processes` does, without loading torch."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _train(command: Train, processes: "Processes") -> None:
    from goldfinch.training.run.replacing import replacing
    from goldfinch.training.trainer import Trainer

    config, resume = command.settings, command.resume is not None
    if command.overwrite and (resume or processes.world_size > 1):
        raise UserError("--overwrite is for new runs in one process: leave it out, or remove the old run first")
    display = TrainingDisplay()
    with display if processes.is_main else contextlib.nullcontext():
        with replacing(config.output) if command.overwrite else contextlib.nullcontext():
            trainer = Trainer(config, display, resume, processes)
        result = trainer.train()
    if not processes.is_main:
        return
    print(
        f"\nvalidation: {result.loss:.4f} nats per token, {result.bits_per_byte:.4f} bits per byte "
        f"({result.extent})\n"
        f"loss plot:  {config.output / 'loss.png'}\n"
        f'next:       goldfinch generate {config.output} "Once upon a time"'
    )


def resolve(args: list[str]) -> Train:
    """The run that the arguments describe.

    They are parsed twice: first those that name the preset, recipe, files or run whose settings are the defaults, then
    all of them over these defaults.
    """
    sources = _sources(args)
    if sources.recipe and sources.preset:
        raise UserError(f"{sources.preset} and --recipe {sources.recipe} name two models: give one of them")
    if sources.recipe and sources.resume:
        raise UserError(f"{sources.resume} resumes with its own settings: leave --recipe out")
    files = [(path, _read_file(path)) for path in sources.config]
    if sources.resume:
        require_path(sources.resume)
        from goldfinch.training.run.folder import read_settings

        values = read_settings(sources.resume).to_dict() | {"output": str(sources.resume)}
    else:
        values = _REQUIRED | _defaults(sources, [content for _, content in files])
    for path, content in files:
        values = merge(values, content)
        try:
            from_plain(TrainConfig, values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    settings = from_plain(_Settings, values)
    for name in _REQUIRED:
        if not values[name] and not sources.dry_run:
            object.__setattr__(settings, name, tyro.MISSING)  # what only tyro understands, and so unchecked
    default = Train(preset=sources.preset or DEFAULT_PRESET, settings=settings)
    registry = rope_on_one_line(settings.model.rope, "model.rope")
    train = parse(Train, "train", args, default=default, registry=registry)
    config = TrainConfig(
        **{field.name: getattr(train.settings, field.name) for field in dataclasses.fields(TrainConfig)}
    )
    if train.train_only == "gold":
        multipliers = gold_only(config.model) + config.optimizer.learning_rate_multipliers
        optimizer = dataclasses.replace(config.optimizer, learning_rate_multipliers=multipliers)
        config = dataclasses.replace(config, optimizer=optimizer)
    return dataclasses.replace(train, settings=config)


def _sources(args: list[str]) -> _Sources:
    without_help = [arg for arg in args if arg not in ("-h", "--help")]
    sources, _ = parse_known(_Sources, "train", without_help)
    return sources


def _defaults(sources: _Sources, files: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings that files and flags override: those of a recipe, a preset, or the model to start from."""
    initial = sources.initial or next((content["initial"] for content in files[::-1] if content.get("initial")), None)
    data = sources.data or next((content["data"] for content in files[::-1] if content.get("data")), ())
    if initial is not None:
        if sources.preset:
            raise UserError(f"--initial takes the model of {initial}: leave out the preset {sources.preset}")
        folder = require_model(Path(initial))
        from goldfinch.checkpoint.model_folder import read_config

        model = read_config(folder)
        values = recipe(sources.recipe) if sources.recipe else settings_for(model)
        return values | {"model": model.to_dict()}
    vocab_size = _vocab_size(data if isinstance(data, str) else data[0]) if data else WORLD_VOCABULARY
    if sources.recipe:
        return recipe(sources.recipe, vocab_size)
    model = model_config(sources.preset or DEFAULT_PRESET, vocab_size)
    return {"model": model.to_dict(), **settings_for(model)}


def _list_recipes() -> None:
    width = max(map(len, recipe_names()))
    print("\n".join(f"{name:<{width}}  {recipe_summary(name)}" for name in recipe_names()))


def _vocab_size(source: str) -> int:
    """The vocabulary size of the data, which is the model's unless set otherwise."""
    from goldfinch.data.mixture import Source
    from goldfinch.data.shards import Index

    return Index.load(Path(Source.parse(source).folder)).vocab_size


def _read_file(path: Path) -> dict[str, Any]:
    """The settings in a YAML or JSON file."""
    content = read_yaml(path)  # JSON is YAML
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a mapping of settings, such as `steps: 1000`")
    return content
