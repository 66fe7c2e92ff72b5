"""The command line as users meet it: what works, and what each mistake is answered with."""

import io
import json
import subprocess
import sys

import pytest

from goldfinch.cli.main import COMMANDS, run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with a text file and the data prepared from it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text("\n\n".join(f"The whale number {i} swims past the ship." for i in range(300)))
    prepared = ["data", "prepare", str(folder / "text.txt"), "-o", str(folder / "data"), "--tokenizer", "bytes"]
    assert run([*prepared, "--validation-fraction", "0.1"]) == 0
    return folder


SMALL = ["--steps", "4", "--sequence-length", "16", "--batch-size", "2", "--sample-every", "0"]
SMALL += ["--max-validation-tokens", "64"]


@pytest.fixture(scope="session")
def trained(corpus):
    """A run made by `goldfinch train`."""
    folder = corpus / "run"
    args = ["train", "goldfinch-L3-D64", "--data", str(corpus / "data"), "-o", str(folder), *SMALL]
    assert run(args) == 0
    return folder


def fails(capsys, *args):
    """Run a command that must fail; returns its message, which must be one line."""
    capsys.readouterr()
    code = run([str(arg) for arg in args])
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.err.startswith("goldfinch: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("args", [[], ["--help"], ["--version"]])
def test_the_first_help_needs_no_torch(args):
    code = f"import sys; from goldfinch.cli.main import run; run({args!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


MISTAKES = [
    "info goldfich-L6-D256",
    "info nosuch/folder",
    "bench speed goldfich-L6-D256",
    "bench memory nosuch",
    "ask nosuch.gfc x",
    "ask book.gfc x -m nosuch",
    "generate nosuch x",
    "generate . x",
    "generate . x --temprature 1",
    "generate model x --dtype fp8",
    "ask book.gfc x --device gpu",
    "read book.gfc -m model -o x.gfc --device gpu",
    "chat nosuch",
    "cache info nosuch.gfc",
    "read nosuch.txt -m run -o x.gfc",
    "read book.gfc -m nosuch -o x.gfc",
    "convert nosuch.pth -o x",
    "export gguf nosuch -o x.gguf",
    "export onnx nosuch -o x.onnx",
    "export hf nosuch -o x",
    "export hf model -o x --shard-size 5XB",
    "generate hf:nosuch x",
    "export gguf model -o x.gguf --dtype fp8",
    "upgrade nosuch.pth --gold append:1 -o x",
    "quantize nosuch -o x",
    "quantize model -o x --weights int3",
    "train --resume nosuch",
    "train --initial nosuch --data x -o y",
    "train --config nosuch.yaml",
    "train --data nosuch -o y",
    "compare goldfinch-L3-D64 llama-L3-D64 --data nosuch -o y",
    "data verify nosuch",
    "experiment position nosuch --text x -o y",
    "experiment mqar --kinds fnch -o y",
]


def test_mistakes_are_answered_without_waiting_for_torch(tmp_path):
    (tmp_path / "book.gfc").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    code = (
        "import sys\nfrom goldfinch.cli.main import run\n"
        "for line in sys.argv[1:]:\n"
        "    assert run(line.split()) == 2, line\n"
        "    assert 'torch' not in sys.modules, line\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *MISTAKES], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(MISTAKES)
    assert "Errno" not in done.stderr
    assert "did you mean goldfinch-L6-D256?" in done.stderr


def test_the_costs_of_a_preset_are_shown_without_waiting_for_torch():
    code = "import sys; from goldfinch.cli.main import run; assert run(['info', 'goldfinch-L24-D2048']) == 0; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True, capture_output=True)


def test_a_name_that_does_not_exist_is_answered_with_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moby.gfc").touch()
    assert "mobi.gfc does not exist; did you mean moby.gfc?" in fails(capsys, "ask", "mobi.gfc", "x")


def test_the_systems_own_errors_have_no_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    error = fails(capsys, "quickstart", "-o", "file/run")
    assert "Errno" not in error
    assert "file" in error
    (tmp_path / "model.pth").touch()
    assert "Errno" not in fails(capsys, "convert", "model.pth", "--config", "nosuch.yaml", "-o", "out")
    error = fails(capsys, "bench", "memory", "goldfinch-L1-D64", "--png", "file/plot.png")
    assert "Errno" not in error
    assert ".tmp" not in error


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        run([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert f"goldfinch {command}" in text
    assert "(required)" in text or "default:" in text or "subcommands:" in text or command == "doctor"


def test_training_prints_the_next_command_which_works(trained, capsys):
    assert run(["generate", str(trained), "The whale", "--max-tokens", "5", "--seed", "1"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("The whale")
    run(["generate", str(trained), "The whale", "--max-tokens", "5", "--seed", "1"])
    assert capsys.readouterr().out == first


def test_generation_reads_standard_input_and_stops_at_stop_strings(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin.read", lambda: "whale", raising=False)
    args = ["generate", str(trained), "-", "--max-tokens", "40", "--seed", "0", "--temperature", "5", "--top-p", "1"]
    assert run(args) == 0
    written = capsys.readouterr().out
    stop = written[len("whale") + 3]
    assert run([*args, "--stop", stop]) == 0
    assert capsys.readouterr().out == written.partition("whale")[1] + written[5:].partition(stop)[0] + "\n"


def test_flags_override_files_and_files_override_the_preset(corpus, trained, tmp_path):
    (tmp_path / "a.yaml").write_text("model: {latent_ratio: 8}\nsteps: 3\noptimizer: {learning_rate: 1e-3}\n")
    (tmp_path / "b.json").write_text('{"seed": 7}')
    args = ["train", "finch_c2-L2-D64", "--data", str(corpus / "data"), "-o", str(tmp_path / "run"), *SMALL]
    args += ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.json"), "--steps", "2"]
    args += ["--model.time-mixes", "finch", "gold", "--model.rope", "rescale=2"]
    assert run(args) == 0
    stored = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (stored["steps"], stored["seed"], stored["optimizer"]["learning_rate"]) == (2, 7, 0.001)
    assert (stored["model"]["latent_ratio"], stored["model"]["time_mixes"]) == (8, ["finch", "gold"])
    assert stored["model"]["rope"] == {"base": 10000.0, "rescale": 2.0, "rebase": 1.0}
    assert stored["model"]["vocab_size"] == 257


def test_a_recipe_brings_its_settings_and_flags_override_them(corpus, tmp_path, capsys):
    assert run(["train", "--recipe", "list"]) == 0
    assert "paper/L24-D2048-goldfinch " in capsys.readouterr().out
    args = ["train", "--recipe", "compare/L6-D256-llama", "--data", str(corpus / "data"), "-o", str(tmp_path / "run")]
    assert run([*args, *SMALL, "--micro-batch-size", "0", "--optimizer.schedule", "wsd"]) == 0
    stored = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (stored["model"]["vocab_size"], stored["model"]["channel_width"]) == (257, 744)
    assert (stored["steps"], stored["save_every"], stored["validate_every"]) == (4, 70, 245)
    assert (stored["optimizer"]["learning_rate"], stored["optimizer"]["schedule"]) == (3e-3, "wsd")


def test_a_dry_run_needs_neither_data_nor_output_nor_memory(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["train", "--recipe", "paper/L24-D2048-goldfinch", "--dry-run", "--num-gpus", "8", "--gpu-tflops", "989"]
    assert run([*args, "--utilisation", "0.4", "--tokens", "1498226207"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "1,445,224,448" in table  # the published count, less the bonus that Finch-C2 never uses
    assert "16 finch_c2 blocks" in table
    assert "11,431 of 131,072 tokens" in table
    assert "days 0.0466 (1.1 hours)" in table
    assert "days on this processor" in table
    assert "with --activation-checkpointing" in table
    assert list(tmp_path.iterdir()) == []


def test_a_runs_own_settings_start_the_same_run_again(corpus, trained, tmp_path):
    settings = trained / "training.json"
    assert run(["train", "--config", str(settings), "--data", str(corpus / "data"), "-o", str(tmp_path / "again")]) == 0
    losses = [
        [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (trained, tmp_path / "again")
    ]
    assert losses[0] == losses[1]


def test_resuming_continues_with_more_steps(corpus, tmp_path):
    args = ["train", "finch-L1-D64", "--data", str(corpus / "data"), "-o", str(tmp_path / "run"), *SMALL]
    assert run(args) == 0
    assert run(["train", "--resume", str(tmp_path / "run"), "--steps", "6"]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 6


def test_a_run_is_overwritten_only_when_asked_and_only_by_one_that_can_begin(corpus, tmp_path, capsys):
    args = ["train", "finch-L1-D64", "-o", str(tmp_path / "run"), *SMALL]
    data = ["--data", str(corpus / "data")]
    assert run([*args, *data]) == 0
    assert "--overwrite" in fails(capsys, *args, *data)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    fails(capsys, *args, *data, "--overwrite", "--sequence-length", 10**6)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert run([*args, *data, "--overwrite", "--seed", "5"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_info_speaks_of_presets_and_runs(trained, capsys):
    assert run(["info", "goldfinch-L24-D2048"]) == 0
    table = capsys.readouterr().out
    assert "1,445,257,216" in table
    assert "756x" in table
    assert run(["info", str(trained), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["vocab_size"] == 257


def test_a_conversation_of_several_messages(trained, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The whale\n\nThe ship\n"))
    assert run(["chat", str(trained), "--plain", "--max-tokens", "5", "--seed", "0"]) == 0
    assert capsys.readouterr().out.count("\n") >= 2


def test_mistakes_are_answered_in_one_line_with_the_remedy(corpus, trained, tmp_path, capsys):
    data, out = corpus / "data", tmp_path / "out"
    (tmp_path / "bad.yaml").write_text("optimizer: {learning_rat: 1}")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01\x02" * 100)
    cases = {
        ("trian",): "did you mean train",
        ("info", "goldfish-L12-D768"): "did you mean goldfinch",
        ("info", "goldfinch-12-768"): "L<layers>-D<width>",
        ("train", "goldfinch-L3-D100", "--data", data, "-o", out): "multiple of head_size",
        ("train", "--config", tmp_path / "bad.yaml", "--data", data, "-o", out): "did you mean learning_rate",
        ("train", "--data", tmp_path / "nothing", "-o", out): "nothing",
        ("train", "--data", data, "-o", trained): "--resume",
        ("train", "--resume", tmp_path / "nothing"): "nothing does not exist",
        ("train", "finch-L1-D64", "--data", data, "-o", out, "--model.vocab-size", 100): "--model.vocab-size 257",
        ("train", "finch-L1-D64", "--data", data, "-o", out, "--sequence-length", 10**6): "shorter --sequence-length",
        ("train", "--data", data, "-o", out, "--stepz", 4): "did you mean --steps?",
        ("train", "--data", data, "-o", out, "--steps", "many"): "--steps",
        ("train", "--data", data): "--output",
        ("train", "--dry-run", "--num-gpus", 3): "cannot be shared by 3",
        ("train", "--recipe", "compare/L6-D256-lama", "--data", data, "-o", out): "did you mean compare/L6-D256-llama",
        ("train", "finch-L1-D64", "--recipe", "compare/L6-D256-llama", "--data", data, "-o", out): "give one of them",
        ("train", "--resume", trained, "--recipe", "compare/L6-D256-llama"): "leave --recipe out",
        (
            "train",
            "finch-L1-D64",
            "--data",
            data,
            "-o",
            out,
            "--optimizer.learning-rate-multipliers",
            "haed.*=1",
        ): "head.weight",
        ("train", "--data", data, "-o", out, "--dtype", "fp8"): "use auto, bfloat16 or float32",
        ("train", "--data", data, "-o", out, "--model.rope", "bass=3"): "did you mean base",
        ("data",): "missing: one of prepare, stream, verify, export",
        ("generate", tmp_path, "x"): "holds no model",
        ("generate", trained): "goldfinch generate --help",
        ("generate", trained, ""): "prompt is empty",
        ("generate", trained, "x", "--top-p", 2): "top_p",
        ("data", "prepare", tmp_path / "empty.txt", "-o", out): "empty",
        ("data", "prepare", tmp_path / "binary.txt", "-o", out): "binary",
        ("data", "prepare", corpus / "text.txt", "-o", data): "exists",
        ("convert", tmp_path / "binary.txt", "-o", out): "binary.txt",
        ("quickstart", "-o", trained): "exists",
    }
    for args, remedy in cases.items():
        assert remedy in fails(capsys, *args), args
        assert not out.exists(), args


def test_half_written_weights_are_refused(trained, tmp_path, capsys):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    whole = (trained / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors" in fails(capsys, "generate", tmp_path, "x")


def test_a_model_is_trained_on_from_its_weights_with_longer_contexts(corpus, tmp_path, capsys):
    data, base, out = corpus / "data", tmp_path / "base", tmp_path / "longer"
    assert run(["train", "goldfinch_rope-L3-D64", "--data", str(data), "-o", str(base), *SMALL]) == 0
    args = ["train", "--initial", str(base), "--data", str(data), "-o", str(out), *SMALL]
    assert run([*args, "--model.rope", "rescale=4", "--sequence-length", "64"]) == 0
    stored = json.loads((out / "training.json").read_text())
    assert stored["initial"] == str(base)
    assert stored["model"]["rope"] == {"base": 10000.0, "rescale": 4.0, "rebase": 1.0}
    assert stored["model"]["width"] == 64
    # Its settings, from a file, start the same run again.
    again = ["train", "--config", str(out / "training.json"), "-o", str(tmp_path / "again")]
    assert run(again) == 0
    lines = [(run_ / "metrics.jsonl").read_text().splitlines()[0] for run_ in (out, tmp_path / "again")]
    assert json.loads(lines[0])["loss"] == json.loads(lines[1])["loss"]
    wrong = {
        ("train", "finch-L1-D64", "--initial", base, "--data", data): "leave out the preset finch-L1-D64",
        ("train", "--initial", base, "--data", data, "--model.width", 128): "model.width 64, not 128",
        ("train", "--initial", tmp_path, "--data", data): "holds no model",
    }
    for words, answer in wrong.items():
        assert answer in fails(capsys, *words, "-o", tmp_path / "none")
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "x"], "'x' is not an integer"),
        (["--logit-bias", "5=many"], "'many' is not a number"),
        (["--logit-bias", "five=1"], "'five' is not an integer"),
        (["--temperature", "-1"], "temperature must be at least 0"),
    ],
)
def test_values_that_cannot_be_read_are_named(flags, message, trained, capsys):
    assert run(["generate", str(trained), "The whale", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_grammar_from_a_file_is_followed(trained, tmp_path, capsys):
    schema, rules = tmp_path / "answer.json", tmp_path / "answer.lark"
    schema.write_text('{"enum": ["yes", "no"]}')
    rules.write_text('start: "yes" | "no"')
    args = ["generate", str(trained), "Is it a whale?", "--json", "--grammar"]
    for file, allowed in ((schema, {'"yes"', '"no"'}), (rules, {"yes", "no"})):
        assert run([*args, str(file)]) == 0
        generation = json.loads(capsys.readouterr().out)
        assert generation["text"] in allowed
        assert generation["finish_reason"] == "stop"
    rules.write_text("start: answer")
    assert run([*args, str(rules)]) == 2
    error = capsys.readouterr().err
    assert f'{rules}: the Lark grammar is invalid at line 1, column 8: unknown name: "answer"' in error
    assert error.count("\n") == 1


def test_a_bias_given_as_a_flag_forces_a_token(trained, capsys):
    args = ["generate", str(trained), "The whale", "--max-tokens", "3", "--json"]
    assert run([*args, "--logit-bias", f"{ord('z')}=1000"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "zzz"
