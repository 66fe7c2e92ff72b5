"""The scripts of benchmarks/, run in this process on tiny tensors."""

import importlib
import sys
from pathlib import Path

import pytest

from goldfinch.benchmark import speed

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """script(name) -> a script of benchmarks/, as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def run(script, monkeypatch, capsys):
    """run(name, *arguments) runs a script on tiny tensors; returns what it prints."""
    monkeypatch.setattr(speed, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(speed, "MIN_PRODUCT_FLOPS", 1)

    def call(name, *arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / f"{name}.py"), *map(str, arguments)])
        script(name).main()
        return capsys.readouterr().out

    return call
