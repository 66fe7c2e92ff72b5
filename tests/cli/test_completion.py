"""Completion scripts: what a shell offers after the words so far."""

import shutil
import subprocess

import pytest

from goldfinch.cli.completion import SHELLS
from goldfinch.cli.main import COMMANDS, run


@pytest.fixture(scope="module")
def script():
    """script(shell) is what `goldfinch --completion SHELL` prints."""
    from goldfinch.cli.completion import completion

    scripts = {shell: completion(shell, list(COMMANDS)) for shell in SHELLS}
    return scripts.__getitem__


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "offered", "not_offered"),
    [
        (["t"], {"train"}, {"read"}),
        (["data", ""], {"prepare", "stream", "--help"}, {"--tokenizer"}),
        (["data", "prepare", "--tok"], {"--tokenizer"}, {"--output"}),
        (["data", "prepare", "x", "-o", "y", "--se"], {"--seed"}, {"--split"}),
        (["train", "--optimizer.lea"], {"--optimizer.learning-rate"}, {"--optimizer.clip"}),
        (["info", "goldfinch-L6-D2"], {"goldfinch-L6-D256"}, {"finch-L6-D256"}),
        (["compare", "--step"], {"--steps"}, {"--data"}),
    ],
)
def test_bash_offers_what_may_follow(words, offered, not_offered, script):
    ask = 'COMP_WORDS=(goldfinch "$@"); COMP_CWORD=$#; _goldfinch; printf "%s\n" "${COMPREPLY[@]}"'
    command = ["bash", "-c", f"{script('bash')}\n{ask}", "bash", *words]
    found = set(subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())
    assert offered <= found
    assert not not_offered & found


@pytest.mark.parametrize("shell", SHELLS)
def test_each_script_knows_all_commands_and_their_options(shell, script):
    text = script(shell)
    for command in COMMANDS:
        assert command in text
    assert "max-draft-tokens" in text


def test_another_shell_is_refused(capsys):
    assert run(["--completion", "fsh"]) == 2
    assert "did you mean fish?" in capsys.readouterr().err
    assert run(["--completion"]) == 2
    assert "bash, zsh or fish" in capsys.readouterr().err
