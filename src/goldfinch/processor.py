"""This machine's processor: its name, and the instruction sets that it has."""

import platform
import subprocess
import sys
from pathlib import Path

DESCRIPTION = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Such as "AMD EPYC 7763 64-Core Processor"; its architecture where the system does not say more."""
    return _field("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Such as "avx2", by the names of the system and of PyTorch, which also finds some where the system names none."""
    import torch

    found = (_field("flags") or _field("Features")).split()  # x86, ARM
    if sys.platform == "darwin":
        found = first_line(["sysctl", "-n", "machdep.cpu.features"]).lower().replace(".", "_").split()
    if hasattr(torch.cpu, "get_capabilities"):  # not in older versions
        found += [name for name, has in torch.cpu.get_capabilities().items() if has is True]
    return found


def _field(name: str) -> str:
    """A field of /proc/cpuinfo; empty where there is none."""
    try:
        lines = DESCRIPTION.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")


def first_line(command: list[str]) -> str:
    """What a program prints first; empty if it cannot be run."""
    try:
        result = subprocess.run(command, capture_output=True, check=False, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.partition("\n")[0]
