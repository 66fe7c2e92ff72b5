"""How much memory expanded keys and values may take."""

import psutil
import torch

from goldfinch.argument_checks import integer, num_bytes

AUTO = "auto"


def parse_budget(budget: int | str, device: torch.device | str = "cpu") -> int:
    """Turn a number, a text such as "2GiB" or "500 MB", or "auto" (half of the device's free memory) into bytes.

    Raises:
        UserError: it is none of these, or the device is not known.
    """
    if budget == AUTO:
        return _free_bytes(torch.device(device)) // 2
    if not isinstance(budget, str):
        return integer("budget", budget)
    return num_bytes("budget", budget, f"{AUTO}, 0 or ")


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
