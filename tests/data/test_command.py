"""The commands of `goldfinch data`, as a user types them."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from goldfinch.cli.data import main
from goldfinch.data.moby_dick import moby_dick_chapters
from goldfinch.data.shards import TokenDataset
from goldfinch.data.tokenizers import load_tokenizer
from goldfinch.errors import UserError


def goldfinch_data(*args: object) -> None:
    main([str(arg) for arg in args])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in moby_dick_chapters()[:30]))
    return path


def test_prepare_then_verify(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    goldfinch_data("prepare", corpus, "-o", tmp_path / "my data", "--vocab-size", 600)
    out = capsys.readouterr().out
    data = TokenDataset.open(tmp_path / "my data", "train")
    assert data.vocab_size == 600
    assert "30 documents" in out
    assert f"{len(data):,} tokens" in out
    assert out.endswith(f"next: goldfinch train --data '{tmp_path}/my data' -o runs/NAME\n")
    goldfinch_data("verify", tmp_path / "my data")
    assert capsys.readouterr().out.splitlines()[0] == f"train: {len(data):,} tokens, checksums match"


@pytest.mark.parametrize(("tokenizer", "vocab_size"), [("bytes", 257), ("world", 65536), ("file", 300)])
def test_each_tokenizer_by_name_or_file(tokenizer: str, vocab_size: int, corpus: Path, tmp_path: Path) -> None:
    if tokenizer == "file":
        goldfinch_data("prepare", corpus, "-o", tmp_path / "first", "--vocab-size", 300)
        tokenizer = str(tmp_path / "first" / "tokenizer.json")
    goldfinch_data("prepare", corpus, "-o", tmp_path / "d", "--tokenizer", tokenizer)
    assert TokenDataset.open(tmp_path / "d", "validation").vocab_size == vocab_size


def test_a_token_pair_is_prepared_and_exported(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goldfinch_data("prepare", corpus, "-o", tmp_path / "d", "--tokenizer", "bytes")
    goldfinch_data("export", tmp_path / "d", "-o", tmp_path / "pairs" / "p")
    tokens = len(TokenDataset.open(tmp_path / "d", "train"))
    assert f"p-train.idx, p-train.bin: {tokens:,} tokens" in capsys.readouterr().out
    pair = tmp_path / "pairs" / "p-train.idx"
    with pytest.raises(UserError, match=r"p-train\.idx needs the tokenizer that it was made with: --tokenizer world"):
        goldfinch_data("prepare", pair, "-o", tmp_path / "again")
    with pytest.raises(UserError, match=r"name its index, .*p-train\.idx"):
        goldfinch_data("prepare", pair.with_suffix(".bin"), "-o", tmp_path / "again", "--tokenizer", "bytes")
    goldfinch_data("prepare", pair, "-o", tmp_path / "again", "--tokenizer", "bytes", "--validation-fraction", 0.03)
    assert f"{tokens:,} tokens" in capsys.readouterr().out


def test_bad_lines_are_shown_up_to_a_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n' + "[bold]\n" * 50)
    goldfinch_data("prepare", path, "-o", tmp_path / "d", "--tokenizer", "bytes")
    captured = capsys.readouterr()
    shown = [line for line in captured.err.splitlines() if line.startswith("skipped ")]
    assert shown[0].startswith(f"skipped {path}:3: not JSON")
    assert shown[20:] == ["skipped 30 more"]
    assert "skipped: 50 bad documents" in captured.out


def test_prepare_takes_folders_patterns_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {"src/a.py": "code = 1", "src/b.html": "<p>b</p>", "src/c.csv": "x,y", "docs/d.md": "# d", "e.rs": "fn"}
    for name, content in contents.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    Path("src/image.png").write_bytes(b"\x89PNG\0")
    Path("src/latin.txt").write_bytes("naïveté".encode("latin-1"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped" * 9)))
    goldfinch_data("prepare", "src", "docs/*", "e.rs", "-", "--exclude", "*.csv", "-o", "d", "--vocab-size", 300)
    data = [TokenDataset.open(Path("d"), split) for split in ("train", "validation")]
    tokenizer = load_tokenizer(Path("d/tokenizer.json"))
    text = "".join(tokenizer.decode(each.tokens(0, len(each))) for each in data)
    for part in ("code = 1", "<p>b</p>", "# d", "fn", "naïveté", "piped"):
        assert part in text
    assert "x,y" not in text
    err = capsys.readouterr().err.splitlines()
    assert err[:2] == ["skipped src/image.png: binary", "not UTF-8, reading src/latin.txt as cp1252"]


def test_existing_directory_is_refused_before_the_tokenizer_is_trained(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists: choose another directory, or give --overwrite"):
        goldfinch_data("prepare", tmp_path / "missing.jsonl", "-o", tmp_path)
    with pytest.raises(UserError, match="no files given"):
        goldfinch_data("prepare", "-o", tmp_path / "d")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, goldfinch.cli.data; print({'torch', 'numpy', 'tokenizers', 'rich.progress'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
