"""The report that goes with a bug report."""

import json

import torch

import goldfinch
from goldfinch.cli.main import run
from goldfinch.doctor import diagnose


def test_the_report_has_what_is_asked_first(capsys):
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    for fact in (goldfinch.__version__, torch.__version__, "instruction sets", "compiler", "usable cores", "GPU"):
        assert fact.lower() in out.lower(), fact
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threads"]["pytorch"] == torch.get_num_threads()
    assert found["processor"]["memory_bytes"] > 2**28


def test_a_machine_without_compiler_and_cache_is_described(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = diagnose()
    assert found["compiler"]["version"] == "does not run"
    assert (found["caches"]["num_libraries"], found["caches"]["can_be_written"]) == (0, True)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert diagnose()["compiler"]["command"].startswith("none")
