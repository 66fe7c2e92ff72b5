"""Preparing data: which document goes where, that none is lost, and that memory stays flat."""

import errno
import io
import json
import tracemalloc
from pathlib import Path

import pytest

from goldfinch.data import documents as documents_module
from goldfinch.data import sources, train_validation_split
from goldfinch.data.moby_dick import moby_dick
from goldfinch.data.prepare import PrepareReport, Progress, prepare, train_tokenizer
from goldfinch.data.shards import SPLITS, Split, TokenDataset, verify
from goldfinch.data.tokenizers import ByteTokenizer, WorldTokenizer, load_tokenizer
from goldfinch.errors import UserError


def json_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def documents_of(directory: Path, split: Split) -> list[str]:
    data = TokenDataset.open(directory, split)
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    ends = [*data.document_starts[1:].tolist(), len(data)]
    ids = [data.tokens(start, end - start).tolist() for start, end in zip(data.document_starts, ends, strict=True)]
    assert all(document[-1] == tokenizer.end_of_text for document in ids)
    return [tokenizer.decode(document) for document in ids]


def test_every_document_is_in_one_split_and_the_report_counts_them(tmp_path: Path) -> None:
    texts = [f"document {i}, naïve 龍\n" * (i % 7 + 1) for i in range(300)]
    files = [json_lines(tmp_path / "a.jsonl", texts[:100]), json_lines(tmp_path / "b.jsonl", texts[100:])]
    seen: list[Progress] = []
    report = prepare(files, tmp_path / "d", WorldTokenizer(), validation_fraction=0.1, on_progress=seen.append)
    train, validation = (documents_of(tmp_path / "d", split) for split in SPLITS)
    assert sorted(train + validation) == sorted(texts)
    assert train == [text for text in texts if text in set(train)]
    assert 10 < len(validation) < 60
    assert 0.09 < report.splits["validation"].tokens / report.tokens < 0.11
    for split, documents in (("train", train), ("validation", validation)):
        data = TokenDataset.open(tmp_path / "d", split)
        counted = report.splits[split]
        assert (counted.documents, counted.tokens) == (len(documents), len(data))
        assert counted.text_bytes == data.text_bytes == len("".join(documents).encode())
    assert seen[-1] == Progress(
        bytes_read=sum(file.stat().st_size for file in files),
        bytes_total=sum(file.stat().st_size for file in files),
        tokens=report.tokens,
    )
    assert len(list(verify(tmp_path / "d"))) == 2


def test_split_depends_on_seed_and_place_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {i}" for i in range(400)]
    one = json_lines(tmp_path / "a.jsonl", texts)
    for i, name in enumerate(("x", "y", "z")):
        prepare([one], tmp_path / name, ByteTokenizer(), validation_fraction=0.05, seed=i // 2)
        monkeypatch.setattr(sources, "BATCH_LENGTH", 10)
    x, y, z = (documents_of(tmp_path / name, "validation") for name in ("x", "y", "z"))
    assert x == y != z
    # What is added at the end of many documents does not move what was there.
    monkeypatch.setattr(train_validation_split, "MAX_WEIGHED", 100)
    prepare([json_lines(tmp_path / "b.jsonl", [*texts, *texts])], tmp_path / "w", ByteTokenizer(), seed=0)
    prepare([one], tmp_path / "v", ByteTokenizer(), seed=0)
    first, both = documents_of(tmp_path / "v", "validation"), documents_of(tmp_path / "w", "validation")
    assert both[: len(first)] == first


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_documents_still_give_both_splits(fraction: float, count: int, tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(count)]
    file = json_lines(tmp_path / "a.jsonl", texts)
    for seed in range(4):
        prepare([file], tmp_path / str(seed), ByteTokenizer(), validation_fraction=fraction, seed=seed)
        train, validation = (documents_of(tmp_path / str(seed), split) for split in SPLITS)
        assert train
        assert validation
        assert sorted("".join(train + validation)) == sorted("".join(texts))


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.4])
@pytest.mark.parametrize(
    "sizes",
    [[9000] * 4, [20_000, 300, 9000], [40_000, *[500] * 40], [100] * 300, [3, 90_000]],
    ids=["equal", "unequal", "one-long", "short", "one-tiny"],
)
def test_the_held_out_part_is_near_the_fraction_of_the_tokens(
    sizes: list[int], fraction: float, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.txt" for number in range(len(sizes))]
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        file.write_text((f"word{number} " * size)[:size])
    for seed in range(3):
        report = prepare(files, tmp_path / str(seed), ByteTokenizer(), validation_fraction=fraction, seed=seed)
        assert report.splits["validation"].tokens / report.tokens == pytest.approx(fraction, rel=0.26)
        assert report.documents == len(files)
        train, validation = (documents_of(tmp_path / str(seed), split) for split in SPLITS)
        assert len("".join(train + validation)) == sum(sizes)
        if report.cut:
            whole = Path(report.cut).read_text()
            assert whole in [first + rest for first in train for rest in validation]
        else:
            assert sorted(train + validation) == sorted(file.read_text() for file in files)


def prepare_one(path: Path, text: str, fraction: float) -> tuple[PrepareReport, str, str]:
    (path / "book.txt").write_bytes(text.encode())
    report = prepare([path / "book.txt"], path / "d", ByteTokenizer(), validation_fraction=fraction, overwrite=True)
    (train,), (validation,) = (documents_of(path / "d", split) for split in SPLITS)
    assert train + validation == text
    return report, train, validation


@pytest.mark.parametrize("piece", [1 << 22, 10_000])
def test_single_document_is_cut_at_a_paragraph(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "MAX_PIECE_CHARACTERS", piece)
    text = moby_dick()[:300_000]
    report, train, validation = prepare_one(tmp_path, text, 0.05)
    assert report.cut == str(tmp_path / "book.txt")
    assert report.documents == 1
    assert train.endswith("\n\n")
    assert 0.04 < len(validation) / len(text) < 0.06


@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.999])
def test_single_document_without_paragraphs_is_cut_all_the_same(tmp_path: Path, fraction: float) -> None:
    for text in ("ab", "title\n\n" + "x" * 1000, "word " * 200, "line\n" * 200, "\n\n\n\n", "é" * 99):
        prepare_one(tmp_path, text, fraction)
    (tmp_path / "book.txt").write_text("a")
    with pytest.raises(UserError, match="a single character"):
        prepare([tmp_path / "book.txt"], tmp_path / "e", ByteTokenizer())


def test_bad_lines_are_reported_once_counted_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\nbroken\n{"text": "two"}\n{}\n')
    reported: list[str] = []
    report = prepare([path], tmp_path / "d", ByteTokenizer(), on_error=reported.append)
    assert [message.split(": ")[0] for message in reported] == [f"{path}:2", f"{path}:4"]
    assert (report.skipped, report.documents) == (2, 2)


def test_nothing_to_prepare_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one"}\n{}\n')
    with pytest.raises(UserError, match=r"all 2 are bad, the first one: .*a\.jsonl:1: no field 'text'"):
        prepare([path], tmp_path / "d", ByteTokenizer(), on_error=lambda _: None)
    path.write_text("\n")
    with pytest.raises(UserError, match=r"no documents found in .*a\.jsonl"):
        prepare([path], tmp_path / "d", ByteTokenizer())
    path.write_text('{"text": "one"}\n')
    with pytest.raises(UserError, match=r"validation-fraction must be between 0 and 1, such as 0\.01, not 0\.0"):
        prepare([path], tmp_path / "d", ByteTokenizer(), validation_fraction=0.0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_trained_tokenizer_sees_a_share_of_each_file(tmp_path: Path) -> None:
    a = json_lines(tmp_path / "a.jsonl", ["zebra " * 100] * 50)
    b = json_lines(tmp_path / "b.jsonl", ["quokka " * 100] * 50)
    tokenizer = train_tokenizer([a, b], 300, sample_bytes=2000)
    assert len(tokenizer.encode(" zebra")) == len(tokenizer.encode(" quokka")) == 1
    prepare([a, b], tmp_path / "d", tokenizer)
    assert documents_of(tmp_path / "d", "validation")


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_memory_does_not_grow_with_the_input(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "MAX_PIECE_CHARACTERS", 1 << 15)
    monkeypatch.setattr(sources, "BATCH_LENGTH", 1 << 15)
    path = tmp_path / f"big{suffix}"
    line = "All work and no play makes Jack a dull boy.\n" * 200
    with path.open("w") as file:
        for _ in range(800):
            file.write(json.dumps({"text": line}) + "\n" if suffix == ".jsonl" else line)
    tracemalloc.start()
    try:
        report = prepare([path], tmp_path / "d", ByteTokenizer())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.tokens > 7_000_000
    assert peak < 2_500_000


def test_a_full_disk_names_the_output_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("Call me Ishmael. " * 9000)

    class FullDisk(io.BufferedWriter):
        def close(self):
            if not self.closed:
                super().close()
                raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open

    def fill(path, mode="r", *args, **kwargs):
        if path.suffix == ".bin" and mode == "wb":
            return FullDisk(io.FileIO(path, "wb"))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fill)
    with pytest.raises(UserError, match=r"cannot write .*data: No space left on device"):
        prepare([tmp_path / "a.txt"], tmp_path / "data", tokenizer=ByteTokenizer())
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
