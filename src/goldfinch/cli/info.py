"""`goldfinch info`: the size and cost of a model, without building it."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from goldfinch.cli.arguments import named_config, parse
from goldfinch.cli.tables import Rows, print_table
from goldfinch.cli.units import count, size
from goldfinch.costs import DEFAULT_ID_BYTES, DEFAULT_SEQUENCE_LENGTH, Accounting, preset_costs
from goldfinch.presets import KINDS, SIZES, WORLD_VOCABULARY, preset_names
from goldfinch.pretrained import find_model, pretrained_names

if TYPE_CHECKING:
    from goldfinch.config import ModelConfig

TOTALS_AT = {"1k": 2**10, "64k": 2**16, "1M": 2**20}  # tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """Show a model's layers, parameters, FLOPs and memory; without a name, list the presets.

    Of a model on the Hugging Face Hub, hf:OWNER/NAME, only the config is downloaded.
    """

    preset: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="PRESET|FOLDER")]] = None
    """A preset such as goldfinch-L24-D2048, or a folder with a model."""
    sequence_length: int = DEFAULT_SEQUENCE_LENGTH
    """Sequence length for the FLOPs."""
    vocab_size: int | None = None
    """Vocabulary size, for presets. Default: 65,536 (RWKV World)."""
    id_bytes: Literal[2, 4] | None = None
    """Bytes per token id in the cache. Default: for presets 4, as the paper's 756x and 2550x assume; for folders what
    the model's files use, 2 for up to 65,536 ids."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Print the table, the JSON object or the list of presets."""
        if self.preset is None:
            self._list_presets()
            return
        config = named_config(self.preset, self.vocab_size)
        accounting = self._stored_costs()
        if accounting is None:
            from goldfinch.model.accounting import account

            accounting = account(config, self.sequence_length, self._id_bytes(config))
        if self.json:
            content = {"model": config.to_dict(), **dataclasses.asdict(accounting)}
            content["cache_ratio"] = accounting.cache_ratio
            content["total_bytes"] = {name: accounting.total_bytes(tokens) for name, tokens in TOTALS_AT.items()}
            print(json.dumps(content, indent=2))
        else:
            _print_table(self.preset, config, accounting)

    def _id_bytes(self, config: "ModelConfig") -> int:
        if self.id_bytes is not None:
            return self.id_bytes
        if self.preset is None or not find_model(Path(self.preset), config_only=True).is_dir():
            return DEFAULT_ID_BYTES
        from goldfinch.cache.key_cache import id_dtype

        return id_dtype(config.vocab_size).itemsize

    def _stored_costs(self) -> Accounting | None:
        """Those of a preset at the default settings, at once."""
        is_default = self.sequence_length == DEFAULT_SEQUENCE_LENGTH and self.id_bytes in (None, DEFAULT_ID_BYTES)
        if self.preset is None or find_model(Path(self.preset), config_only=True).is_dir() or not is_default:
            return None
        return preset_costs(self.preset) if self.vocab_size in (None, WORLD_VOCABULARY) else None

    def _list_presets(self) -> None:
        if self.json:
            print(json.dumps(preset_names()))
            return
        print("Presets are named KIND-SIZE, such as goldfinch-L24-D2048.")
        print("  KIND  " + "\n        ".join(KINDS))
        print(f"  SIZE  {', '.join(SIZES)}, or any L<layers>-D<width>")
        if pretrained_names():
            print(f"Trained models that come with GoldFinch: {', '.join(pretrained_names())}")


def _print_table(title: str, config: "ModelConfig", accounting: Accounting) -> None:
    sections = (_shape_rows(config), _parameter_rows(accounting), _flops_rows(accounting), _bytes_rows(accounting))
    print_table(title, sections)


def _shape_rows(config: "ModelConfig") -> Rows:
    plan = ", then ".join(f"{len(list(run))} {kind}" for kind, run in itertools.groupby(config.time_mixes))
    rows = [
        ("layers, bottom to top", plan),
        ("channel mix", f"{config.channel_mix}, {config.channel_mix_width:,} wide"),
        ("width", f"{config.width:,} = {config.num_heads} heads of {config.head_size}"),
        ("vocabulary", f"{config.vocab_size:,} ids"),
    ]
    if config.num_gold_layers:
        rows.append(("compressed key", f"{config.latent_width} numbers, {config.latent_ratio}:1"))
    return rows


def _parameter_rows(accounting: Accounting) -> Rows:
    inner = accounting.parameters - accounting.embedding_parameters
    return [
        ("parameters", f"{accounting.parameters:,}"),
        ("  as published", f"{accounting.parameters_as_published:,}"),
        ("  embedding and head", f"{accounting.embedding_parameters:,}"),
        ("  all others", f"{inner:,}"),
    ]


def _flops_rows(accounting: Accounting) -> Rows:
    return [
        (f"FLOPs per token at {accounting.sequence_length:,}", ""),
        ("  training, forward + backward", f"{count(accounting.training_flops_per_token)}FLOP"),
        ("  prefill", f"{count(accounting.prefill_flops_per_token)}FLOP"),
        ("  decode, keys and values cached", f"{count(accounting.decode_flops_per_token)}FLOP"),
        ("  decode, everything rebuilt each step", f"{count(accounting.decode_rebuilding_flops_per_token)}FLOP"),
    ]


def _bytes_rows(accounting: Accounting) -> Rows:
    ratio = accounting.cache_ratio
    transformer = accounting.transformer_bytes_per_token
    return [
        ("cache per token", f"{accounting.cache_bytes_per_token:,} B"),
        ("  Transformer, same depth and width", f"{transformer:,} B"),
        ("  ratio", "no cache" if ratio is None else f"{int(ratio):,}x"),
        ("recurrent state, at any length", size(accounting.state_bytes)),
        *(
            (
                f"  with the cache at {name} tokens",
                f"{size(accounting.total_bytes(n))} (Transformer {size(n * transformer)})",
            )
            for name, n in TOTALS_AT.items()
        ),
    ]


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Info, "info", args).run()
