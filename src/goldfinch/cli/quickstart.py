"""`goldfinch quickstart`: from nothing to a model that generates text, in minutes."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.contexts import print_stream
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.training.config import TrainConfig

PROMPT = "The whale"
# About 2.1 bits per byte in four minutes on two cores; few other shapes have been tried.
PRESET = "goldfinch-L3-D256"
VOCABULARY = 2048
STEPS = 440
CHAPTERS = "moby_dick.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Train a small GoldFinch on Moby-Dick, which comes with the package, and generate text. Needs no network."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/quickstart")
    """Folder for everything: data, weights, metrics, samples."""
    max_minutes: float = 3.3
    """Maximum time for the training steps; slow machines make fewer steps."""
    seed: int = 0
    """Random seed for initialisation and data order."""
    overwrite: bool = False
    """Remove what an earlier quickstart wrote to this folder. Other files there are never removed."""


def main(args: list[str]) -> None:
    """Prepare, train, show."""
    command = parse(Quickstart, "quickstart", args)
    if command.output.exists() and not command.overwrite:
        raise UserError(f"{command.output} exists: add --overwrite to replace it, or choose another folder with -o")
    run = command.output

    from goldfinch.cli.progress import TrainingDisplay
    from goldfinch.training.run.replacing import replacing
    from goldfinch.training.trainer import Trainer

    with TrainingDisplay() as display:
        with replacing(run, also=("data", CHAPTERS)):
            print(f"1/3  preparing Moby-Dick: a byte-pair vocabulary of {VOCABULARY:,} tokens, chapters for validation")
            _prepare(run / "data", command.seed)
            config = _settings(command)
            print(f"2/3  training {PRESET}, {_parameters(config)}")
            trainer = Trainer(config, display)
        result = trainer.train()
    print("3/3  text from the model:\n")
    cache = _generate(run)
    print(
        f"\n\nvalidation  {result.loss:.3f} nats per token, {result.bits_per_byte:.3f} bits per byte on chapters it "
        f"has never seen\nloss plot   {run / 'loss.png'}\n{cache}\n\nnext:\n"
        f'  goldfinch generate {run} "Call me Ishmael."\n'
        f"  goldfinch chat {run} --plain\n"
        f"  goldfinch info {run}\n"
        f"  goldfinch train --resume {run} --steps {2 * config.steps} --max-minutes {2 * config.max_minutes:g}"
    )


def _prepare(data: Path, seed: int) -> None:
    """Moby-Dick, a document per chapter, with the same functions as any other text."""
    from goldfinch.data.moby_dick import VALIDATION_FRACTION, moby_dick_chapters
    from goldfinch.data.prepare import prepare, train_tokenizer
    from goldfinch.files import write_text

    chapters = data.parent / CHAPTERS
    write_text(chapters, "".join(json.dumps({"text": text}) + "\n" for text in moby_dick_chapters()))
    tokenizer = train_tokenizer([chapters], VOCABULARY)
    prepare([chapters], data, tokenizer, validation_fraction=VALIDATION_FRACTION, seed=seed)


def _settings(command: Quickstart) -> "TrainConfig":
    from goldfinch.presets import model_config
    from goldfinch.training.config import OptimizerConfig, TrainConfig

    return TrainConfig(
        model=model_config(PRESET, VOCABULARY),
        data=(str(command.output / "data"),),
        output=command.output,
        steps=STEPS,
        max_minutes=command.max_minutes,
        sequence_length=256,
        batch_size=4,
        optimizer=OptimizerConfig(learning_rate=4e-3, final_learning_rate=2e-4, warmup_steps=30),
        dtype="float32",
        device="cpu",
        seed=command.seed,
        validate_every=STEPS // 4,
        max_validation_tokens=16384,
        save_every=STEPS // 2,
        sample_every=STEPS // 4,
        sample_prompt=PROMPT,
        sample_max_tokens=40,
    )


def _parameters(config: "TrainConfig") -> str:
    from goldfinch.model.accounting import account

    millions = account(config.model, config.sequence_length).parameters / 1e6
    return f"{millions:.1f} million parameters, for {config.max_minutes:g} minutes at most"


def _generate(run: Path) -> str:
    """Print a paragraph from the new model; returns a line on the size of its cache."""
    from goldfinch import load
    from goldfinch.cache.key_cache import id_dtype
    from goldfinch.model.accounting import account

    lm = load(run)
    context = lm.read(PROMPT)
    print_stream(context.stream(max_tokens=120, temperature=0.8, top_p=0.9, seed=1), prompt=PROMPT)
    costs = account(lm.config, id_bytes=id_dtype(lm.config.vocab_size).itemsize)
    return (
        f"cache       {costs.cache_bytes_per_token} bytes per token, where a Transformer of the same depth and width "
        f"keeps {costs.transformer_bytes_per_token:,}: {costs.cache_ratio:.0f}x less"
    )
