"""Conversations as training data: written by a chat template, which goes along with the data."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import tokenizers
from pyarrow import parquet
from tokenizers import decoders, models, pre_tokenizers, trainers

from goldfinch.cli.data import main
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.documents import read_documents
from goldfinch.data.prepare import prepare
from goldfinch.data.shards import SPLITS, TokenDataset
from goldfinch.data.tokenizers import ByteTokenizer, load_tokenizer
from goldfinch.errors import UserError

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def conversation(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"What is {number} and {number}?"},
        {"role": "assistant", "content": f"It is {2 * number}."},
    ]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": conversation(number)}) + "\n" for number in range(60)))
    return path


def test_conversations_are_written_as_the_template_says(chats: Path, tmp_path: Path) -> None:
    table = pyarrow.table({"id": [1, 2], "messages": [conversation(60), conversation(61)]})
    parquet.write_table(table, tmp_path / "chat.parquet")
    texts = tmp_path / "text.jsonl"
    texts.write_text('{"text": "no conversation", "messages": []}\n')
    prepare([chats, tmp_path / "chat.parquet", texts], tmp_path / "d", ByteTokenizer(), validation_fraction=0.1)
    data = [TokenDataset.open(tmp_path / "d", split) for split in SPLITS]
    ids = np.concatenate([each.tokens(0, len(each)) for each in data])
    documents = [ByteTokenizer().decode(part) for part in np.split(ids, np.flatnonzero(ids == 256))]
    documents = [document.removeprefix(ByteTokenizer().decode([256])) for document in documents]
    for number in (0, 59, 60, 61):
        assert ChatTemplate().render(conversation(number), add_generation_prompt=False) in documents
    assert "User: What is 3 and 3?\n\nAssistant: It is 6.\n\n" in documents
    assert "no conversation" in documents
    assert ChatTemplate.load(tmp_path / "d") == ChatTemplate()


def test_names_of_special_tokens_become_these_tokens_in_conversations_only(chats: Path, tmp_path: Path) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator([], trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chatml.jinja").write_text(CHATML)
    (tmp_path / "text.jsonl").write_text('{"text": "the text <|im_start|> itself"}\n')
    files = [chats, tmp_path / "text.jsonl"]
    options = ["--tokenizer", tmp_path / "tokenizer.json", "--chat-template", tmp_path / "chatml.jinja"]
    main(["prepare", *map(str, files), "-o", str(tmp_path / "d"), *map(str, options)])
    start = load_tokenizer(tmp_path / "tokenizer.json").special_token_ids["<|im_start|>"]
    data = [TokenDataset.open(tmp_path / "d", split) for split in SPLITS]
    assert sum((each.tokens(0, len(each)) == start).sum() for each in data) == 2 * 60
    assert ChatTemplate.load(tmp_path / "d") == ChatTemplate(CHATML)


def test_no_conversation_is_cut(chats: Path, tmp_path: Path) -> None:
    for seed in range(5):
        report = prepare([chats], tmp_path / str(seed), ByteTokenizer(), validation_fraction=0.005, seed=seed)
        assert (report.cut, report.splits["validation"].documents) == (None, 1)
    chats.write_text(json.dumps({"messages": conversation(1)}))
    with pytest.raises(UserError, match="a single conversation cannot be split"):
        prepare([chats], tmp_path / "one", ByteTokenizer())


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "'messages' is not a list of messages"),
        ({"messages": "hi"}, "'messages' is not a list of messages"),
        ({"messages": ["hi"]}, "message 1 needs a role and a content, which must be text"),
        ({"messages": [*conversation(1), {"role": "user", "content": [1]}]}, "message 3 needs a role and a content"),
        ({"messages": [{"role": "system", "content": "x"}]}, "the chat template refuses these messages: no systems"),
        ({"turns": []}, "no field 'text'"),
    ],
)
def test_what_is_no_conversation_is_skipped_with_the_reason(record: dict, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    template = ChatTemplate("{% if messages[0].role == 'system' %}{{ raise_exception('no systems') }}{% endif %}ok")
    reports: list[str] = []
    assert list(read_documents([path], on_error=reports.append, chat_template=template)) == []
    assert reports[0].startswith(f"{path}:1: {reason}")


def test_a_template_that_cannot_be_read_is_one_line(chats: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jinja"
    bad.write_text("{% for %}")
    for given, says in (
        (bad, r"bad\.jinja: .*not valid Jinja"),
        (tmp_path / "no", "cannot read"),
        (tmp_path, "has no"),
    ):
        with pytest.raises(UserError, match=says):
            main(["prepare", str(chats), "-o", str(tmp_path / "d"), "--chat-template", str(given)])
