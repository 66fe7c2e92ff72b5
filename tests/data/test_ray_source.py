"""Preparing data on Ray: what is written is what one process writes."""

import json

import numpy as np
import pytest

from goldfinch.data.indexed_dataset import write_indexed
from goldfinch.data.prepare import Progress, prepare, train_tokenizer
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.ray_cluster import connected_to_ray

pytest.importorskip("ray")
# Ray's own settings of its own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")

CHAT = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ishmael."}]}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    """One for all tests: it takes seconds to start."""
    with connected_to_ray("local"):
        yield


def lines(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


@pytest.fixture
def many(tmp_path):
    """Files of all kinds, with a document of several megabytes and bad ones."""
    long = tmp_path / "long.txt"
    long.write_text("Call me Ishmael.\n\n" * 300_000)
    return [
        lines(tmp_path / "a.jsonl", *({"text": f"document {index}. " * index} for index in range(1, 100))),
        lines(tmp_path / "b.jsonl", CHAT, {"no": "text"}, {"text": "ünïcode \U0001f40b"}, CHAT),
        long,
    ]


@pytest.fixture
def few(tmp_path):
    """One document, whose end is for validation."""
    path = tmp_path / "one.txt"
    path.write_text("".join(f"Paragraph {index} of a single document.\n\n" for index in range(1000)))
    return [path]


@pytest.mark.parametrize(("name", "options"), [("many", {"loss_on": "answers"}), ("few", {})])
def test_every_file_is_as_one_process_writes_it(name, options, request, tmp_path, monkeypatch):
    files = request.getfixturevalue(name)
    tokenizer = train_tokenizer(files[:1], 300)
    monkeypatch.chdir(tmp_path)
    files = [file.relative_to(tmp_path) for file in files]
    reports, problems, progress = {}, {}, list[Progress]()
    for output, ray in (("here", None), ("ray", "local")):
        problems[output] = []
        reports[output] = prepare(
            files,
            tmp_path / output,
            tokenizer,
            ray=ray,
            on_progress=progress.append,
            on_error=problems[output].append,
            **options,
        )
    assert reports["ray"] == reports["here"]
    assert problems["ray"] == problems["here"]
    assert progress[-1].bytes_read == progress[-1].bytes_total
    written = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert written == sorted(path.name for path in (tmp_path / "ray").iterdir())
    for file in written:
        assert (tmp_path / "ray" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_a_file_that_cannot_be_read_is_named_and_nothing_is_written(tmp_path):
    good = lines(tmp_path / "good.jsonl", *({"text": str(index)} for index in range(20_000)))
    (tmp_path / "bad.txt").write_bytes(b"text\x00\xff\xfe")
    with pytest.raises(UserError, match=r"bad\.txt"):
        prepare([good, tmp_path / "bad.txt"], tmp_path / "out", ByteTokenizer(), ray="local", on_error=lambda _: None)
    assert not (tmp_path / "out").exists()


def test_a_bad_document_ends_it_where_none_is_expected(tmp_path):
    file = lines(tmp_path / "a.jsonl", *({"text": str(index)} for index in range(20_000)), {"no": "text"})
    with pytest.raises(UserError, match="20001"):
        prepare([file], tmp_path / "out", ByteTokenizer(), ray="local")


def test_tokens_of_others_are_copied_without_it(tmp_path):
    write_indexed(tmp_path / "a.idx", ([np.array([index, 256])] for index in range(9)), 257)
    with pytest.raises(UserError, match="leave it out"):
        prepare([tmp_path / "a.idx"], tmp_path / "out", ByteTokenizer(), ray="local")
