"""docs/serving.md: its Python and its commands run against a server."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DOCS = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", DOCS, flags=re.DOTALL)


def test_the_python_of_the_docs_gets_its_answers(url, capsys):
    (block,) = [block for kind, block in BLOCKS if kind == "python"]
    exec(block.replace(ADDRESS, url), {})
    assert "cached_tokens" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("curl") is None, reason="the docs use curl")
def test_the_commands_of_the_docs_make_ask_change_and_bring_back_a_context(url, lm, tmp_path):
    lm.save(tmp_path / "runs" / "quickstart")
    _, commands, _ = [block for kind, block in BLOCKS if kind == "sh"]
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands.replace(ADDRESS, url)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert '"error"' not in result.stdout, result.stdout
    listed = json.loads(result.stdout[result.stdout.rindex('{"object":"list"') :])
    assert sorted((each["name"], each["num_tokens"]) for each in listed["data"]) == [
        ("loomings", 99),
        ("loomings", 99),
        ("two words", 7),
    ]
