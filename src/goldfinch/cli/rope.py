"""Rotary positions on one line of the command line: `none`, or fields such as `rescale=4,rebase=1`."""

import dataclasses

import tyro

from goldfinch.cli.arguments import plain_metavars
from goldfinch.config import RopeConfig
from goldfinch.settings import from_plain

METAVAR = "none|base=10000,rescale=1,rebase=1"


def parse_rope(text: str, own: RopeConfig | None = None, name: str = "rope") -> RopeConfig | None:
    """What `text` says; fields that it leaves out are those of `own`.

    Raises:
        UserError: a field is unknown or no number above 0; `name` is how the message calls it.
    """
    if text == "none":
        return None
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    given = {field: value for field, _, value in pairs}
    return from_plain(RopeConfig, dataclasses.asdict(own or RopeConfig()) | given, f"{name}.")


def _format(rope: RopeConfig | None) -> str:
    if rope is None:
        return "none"
    return ",".join(f"{name}={value:g}" for name, value in dataclasses.asdict(rope).items())


def rope_on_one_line(own: RopeConfig | None = None, name: str = "rope") -> tyro.constructors.ConstructorRegistry:
    """Lets fields of type `RopeConfig | None` be given as `parse_rope` takes them."""
    registry = plain_metavars()

    @registry.primitive_rule
    def rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if info.type != RopeConfig | None:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=METAVAR,
            instance_from_str=lambda words: parse_rope(words[0], own, name),
            is_instance=lambda value: value is None or isinstance(value, RopeConfig),
            str_from_instance=lambda value: [_format(value)],
        )

    return registry
