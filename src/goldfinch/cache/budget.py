"""How much memory expanded keys and values may take."""

import re

import psutil
import torch

from goldfinch.argument_checks import integer
from goldfinch.errors import UserError

AUTO = "auto"
_UNITS = {"": 1, "b": 1} | {
    letter + ending: base**power
    for power, letter in enumerate("kmgt", start=1)
    for ending, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


def parse_budget(budget: int | str, device: torch.device | str = "cpu") -> int:
    """Turn a number, a text such as "2GiB" or "500 MB", or "auto" (half of the device's free memory) into bytes.

    Raises:
        UserError: it is none of these, or the device is not known.
    """
    if budget == AUTO:
        return _free_bytes(torch.device(device)) // 2
    if not isinstance(budget, str):
        return integer("budget", budget)
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", budget.lower())
    if not match or match[2] not in _UNITS:
        raise UserError(f"invalid size {budget!r}: use {AUTO}, 0, or for example 500MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
