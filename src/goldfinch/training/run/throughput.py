"""Throughput of a run: tokens per second, and MFU, the fraction of the devices' peak."""

import re
import time

import torch

from goldfinch.model.accounting import account
from goldfinch.training.config import TrainConfig

# Dense peaks in TFLOPS from the vendors' data sheets: bf16 with fp32 sums, and fp32 outside tensor cores, which is what
# PyTorch computes fp32 products with by default. The first name that a device's name contains counts.
_PEAKS = {
    "GB200": (2500.0, 80.0),
    "B200": (2250.0, 75.0),
    "H200 NVL": (836.0, 60.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
    "MI300X": (1307.0, 163.4),
}
SECONDS_TO_MEASURE = 0.05


class Throughput:
    """Tokens per second and MFU of a run's steps.

    MFU, model FLOPs utilisation (Chowdhery et al. 2022, arXiv 2204.02311), is

        FLOPs per token * tokens / (seconds * devices * peak FLOPs per second of a device)

    with the FLOPs of `Accounting.training_flops_per_token`: what the model needs, forward and backward, without
    the recomputation of activation checkpointing. The peak is `TrainConfig.peak_tflops`, or known for the GPU, or what
    a short product of large matrices reaches on this device at the start of the run. On a busy machine that estimate is
    low, and MFU may exceed 1.

    Args:
        config: of the run. If it freezes parameters there is no MFU, since part of those FLOPs is saved.
        device: each process's.
        dtype: of the matrix products.
        devices: how many there are in the run.
    """

    def __init__(self, config: TrainConfig, device: torch.device, dtype: torch.dtype, devices: int = 1) -> None:
        self._tokens = config.batch_size * config.sequence_length
        self._step_flops = account(config.model, config.sequence_length).training_flops_per_token * self._tokens
        self._peak = 0.0
        if all(multiplier for _, multiplier in config.optimizer.parsed_multipliers()):
            self._peak = devices * (1e12 * config.peak_tflops or peak_flops(device, dtype))

    def of_step(self, seconds: float) -> dict[str, float]:
        """The fields that a step of this duration adds to its record."""
        record = {"tokens_per_second": round(self._tokens / seconds, 1)}
        if self._peak:
            record["mfu"] = round(self._step_flops / (seconds * self._peak), 4)
        return record


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak FLOPs per second of matrix products on one device: from the data sheet, or measured."""
    if device.type == "cuda":
        known = known_peak_flops(torch.cuda.get_device_name(device), dtype)
        if known is not None:
            return known
    return _measured_flops(device, dtype)


def known_peak_flops(name: str, dtype: torch.dtype) -> float | None:
    """From the data sheet of the device with this name; None for a device that is not in the table."""
    if " MIG " in name:  # a part of that GPU
        return None
    for known, (bf16, fp32) in _PEAKS.items():
        if re.search(rf"\b{known}\b", name) and dtype in (torch.bfloat16, torch.float32):
            return 1e12 * (bf16 if dtype == torch.bfloat16 else fp32)
    return None


def _measured_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The best of a few products of matrices large enough to time."""
    size, best = 128, 0.0
    seconds = 0.0
    while seconds < SECONDS_TO_MEASURE and size < 2**14:
        size *= 2
        a = torch.ones(size, size, dtype=dtype, device=device)
        for _ in range(3):
            started = time.monotonic()
            product = a @ a
            float(product[0, 0])  # waits for the device
            seconds = time.monotonic() - started
            best = max(best, 2 * size**3 / max(seconds, 1e-9))
    return best
