"""What a bug report needs: versions, processor, compiler, threads, caches and GPUs of this machine."""

import importlib.metadata
import os
import platform
from typing import Any

import psutil
import torch

from goldfinch import __version__
from goldfinch.cpu.build import MARCH_VARIABLE, cache_folder, find_compiler
from goldfinch.devices import explain_auto_dtype
from goldfinch.processor import first_line, instruction_sets, processor_name

PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "pyrwkv-tokenizer", "tyro", "rich")
OPTIONAL_PACKAGES = ("pyarrow", "datasets", "gguf", "fla-core", "triton", "tensorboard", "wandb")
# Those that our kernels or PyTorch's gain from, of x86 and of ARM.
INSTRUCTION_SETS = [
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "fphp",
    "bf16",
    "i8mm",
    "sve",
    "sve2",
]
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    MARCH_VARIABLE,
    "XDG_CACHE_HOME",
    "HF_HOME",
)

Section = dict[str, Any]


def diagnose() -> dict[str, Section]:
    """Section -> name -> value: texts, numbers (bytes where the name says so), and lists of texts."""
    return {
        "versions": _versions(),
        "processor": _processor(),
        "threads": _threads(),
        "compiler": _compiler(),
        "caches": _caches(),
        "gpu": _gpu(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _versions() -> Section:
    found = {"goldfinch": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES + OPTIONAL_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package not in OPTIONAL_PACKAGES:
                found[package] = "not installed"
    return found


def _processor() -> Section:
    memory, found = psutil.virtual_memory(), instruction_sets()
    return {
        "name": processor_name(),
        "architecture": platform.machine(),
        "physical_cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in found],
        "pytorch_uses": torch.backends.cpu.get_cpu_capability(),
        "dtype_auto": explain_auto_dtype(torch.device("cpu")),
        "memory_bytes": memory.total,
        "free_memory_bytes": memory.available,
    }


def _threads() -> Section:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"usable_cores": usable, "pytorch": torch.get_num_threads()}


def _compiler() -> Section:
    compiler = find_compiler()
    if compiler is None:
        return {"command": "none: kernels run in PyTorch, several times slower"}
    return {"command": compiler, "version": first_line([compiler, "--version"]) or "does not run"}


def _caches() -> Section:
    folder = cache_folder()
    libraries = list(folder.glob("*.so"))
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {
        "compiled_kernels": str(folder),
        "can_be_written": os.access(existing, os.W_OK),
        "num_libraries": len(libraries),
        "size_bytes": sum(path.stat().st_size for path in libraries),
    }


def _gpu() -> Section:
    if not torch.cuda.is_available():
        return {"devices": [], "cuda": torch.version.cuda or "PyTorch without CUDA"}
    devices = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices.append(f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, capability {facts.major}.{facts.minor}")
    return {"devices": devices, "cuda": torch.version.cuda or "unknown"}
