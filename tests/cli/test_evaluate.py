"""`goldfinch evaluate`, from files and from tasks to the report."""

import json
from pathlib import Path

import pytest

from goldfinch.cli.main import run


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_text_files_are_read_with_all_of_their_context_and_in_windows(small_run, goldfinch):
    Path("a.txt").write_text("Call me Ishmael. " * 9)
    Path("b.txt").write_text("Some years ago")
    shown = goldfinch("evaluate", small_run, "a.txt", "b.txt", "--windows", "16", "50", "-o", "out").out
    assert "2 documents, 167 tokens" in shown
    assert [line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("|")][2:] == [
        "unlimited",
        "windows of 16 tokens",
        "windows of 50 tokens",
    ]
    assert sorted(path.name for path in Path("out").iterdir()) == ["loss_by_position.png", "results.json", "results.md"]
    printed = json.loads(goldfinch("evaluate", small_run, "a.txt", "-o", "out", "--json").out)
    assert [each["context"] for each in printed["losses"]] == [None, 1024]


def test_tasks_that_come_with_the_package_need_no_network(small_run, goldfinch):
    tasks = "moby_dick_cloze,moby_dick_endings"
    captured = goldfinch("evaluate", small_run, "--tasks", tasks, "--limit", "4", "-o", "out", "--batch-size", "3")
    lines = [line.split("|")[1:3] for line in captured.out.splitlines() if line.startswith("|")][2:]
    assert [tuple(map(str.strip, line)) for line in lines] == [
        ("moby_dick_cloze", "perplexity"),
        ("moby_dick_cloze", "acc"),
        ("moby_dick_endings", "acc"),
        ("moby_dick_endings", "acc_norm"),
    ]
    assert "tokens asked" in captured.out
    assert "first 4 documents" in Path("out/results.md").read_text()
    (results,) = Path("out").glob("results_*.json")
    config = json.loads(results.read_text())["config"]
    assert config["tokens_computed"] < config["tokens_asked"]
    assert len(list(Path("out").glob("samples_*.jsonl"))) == 2
    printed = json.loads(goldfinch("evaluate", small_run, "--tasks", tasks, "--limit", "1", "--json", "-o", "o").out)
    assert printed["results"].keys() == {"moby_dick_cloze", "moby_dick_endings"}


def test_local_data_takes_the_place_of_the_network(small_run, goldfinch):
    Path("data/lambada_openai").mkdir(parents=True)
    texts = ["the whale and the ship and the whale", "the ship swims and the ship"]
    Path("data/lambada_openai/test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    shown = goldfinch("evaluate", small_run, "--tasks", "lambada_openai", "--data", "data", "-o", "out").out
    (line,) = [line for line in shown.splitlines() if "| perplexity |" in line]
    assert [cell.strip() for cell in line.split("|")[5:8]] == ["81.9", "71.7", "48.2"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "name either"),
        ("a.txt --tasks piqa", "name either"),
        ("--tasks piqa --limit 0", "--limit must be at least 1"),
        ("a.txt --windows 0", "--windows must be at least 1"),
        pytest.param("--tasks moby_dick_clozes", "did you mean moby_dick_cloze", marks=pytest.mark.slow),
        ("--tasks piqa --data nowhere", "nowhere does not exist"),
        ("--tasks piqa --data .", "load_dataset('baber/piqa', split='validation').to_json('piqa/validation.jsonl')"),
        ("missing.txt", "missing.txt"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(arguments, told, small_run, capsys):
    assert run(["evaluate", small_run, *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_without_lm_eval_the_message_names_the_extra(small_run, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "goldfinch.evaluation.benchmarks", None)
    assert run(["evaluate", small_run, "--tasks", "piqa"]) == 2
    assert "pip install 'goldfinch[eval]'" in capsys.readouterr().err
