"""What is given where another kind of file is needed is recognised, with the command that takes it."""

import pytest
import torch

import goldfinch as gf
from goldfinch.cli.main import run
from goldfinch.data.tokenizers import ByteTokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    lm = gf.LanguageModel(gf.build("goldfinch-L3-D64", vocab_size=257).model, ByteTokenizer())
    lm.save(folder / "model")
    gf.load(folder / "model").read("Call me Ishmael.").save(folder / "book.gfc")
    torch.save({"weight": torch.ones(3)}, folder / "weights.pth")
    (folder / "model.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(100))
    (folder / "book.txt").write_text("Call me Ishmaël. " * 5000, encoding="utf-8")
    assert run(["data", "prepare", str(folder / "book.txt"), "-o", str(folder / "data"), "--tokenizer", "bytes"]) == 0
    return folder


GENERATE, ASK, READ = "goldfinch generate", "goldfinch ask", "goldfinch read"
CASES = [
    ("ask {model} q", "is not a .gfc context file; it is a model folder", GENERATE),
    ("cache info {model}", "is not a .gfc context file; it is a model folder", GENERATE),
    ("generate {text} hi", "is not a .gfc context file; it is a text file", READ),
    ("generate {pth} hi", "is not a .gfc context file; it is a .pth checkpoint", "goldfinch convert"),
    ("generate {data} hi", "holds no model: config.json is missing; it is a data directory", "goldfinch train --data"),
    ("chat {text}", "is not a .gfc context file; it is a text file", READ),
    ("read {text} -m {context} -o {new}", "holds no model: config.json is missing; it is a context file", ASK),
    ("read {context} -m {model} -o {new}", "is binary; it is a context file", ASK),
    ("read {pth} -m {model} -o {new}", "is binary; it is a .pth checkpoint", "goldfinch convert"),
    ("info {context}", "is not a model folder; it is a context file", ASK),
    ("generate {gguf} hi", "is not a .gfc context file; it is a GGUF file", "llama.cpp"),
    ("export gguf {text} -o {new}.gguf", "is not a checkpoint of torch 1.6 or later; it is a text file", READ),
    ("convert {text} -o {new}", "it is a text file", READ),
    ("data verify {model}", "is not a data directory: index.json is missing; it is a model folder", GENERATE),
    ("train --data {text} -o {new}", "is not a data directory: index.json is missing; it is a text file", READ),
]


@pytest.mark.parametrize(("command", "says", "use"), CASES, ids=[command for command, _, _ in CASES])
def test_the_wrong_kind_of_file_names_the_right_command(command, says, use, files, capsys):
    names = {"model": "model", "context": "book.gfc", "pth": "weights.pth", "text": "book.txt", "data": "data"}
    names |= {"gguf": "model.gguf", "new": "new.gfc"}
    paths = {kind: str(files / name) for kind, name in names.items()}
    assert run(command.format(**paths).split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert says in captured.err
    assert use in captured.err
    assert not (files / "new.gfc").exists()
