"""Tokenizers in `transformers`: our ids, left padding, the chat template, whole characters; and back."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, PreTrainedTokenizerFast, PythonBackend, TextIteratorStreamer

from goldfinch.checkpoint.model_folder import save_description
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.moby_dick import moby_dick
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer, WorldTokenizer, load_tokenizer
from goldfinch.errors import UserError
from goldfinch.huggingface.tokenization import from_huggingface, to_huggingface
from goldfinch.presets import model_config

TEXT = "Call me Ishmael.\n\n  Some years ago — 多年以前,有一次。 😀 Зовите é\t" + moby_dick()[:3000]
END_OF_TEXT = "<|endoftext|>"
CONVERSATION = [
    {"role": "system", "content": "You are Ahab."},
    {"role": "user", "content": "Hast seen\nthe White Whale?"},
    {"role": "assistant", "content": "Aye, yesterday."},
    {"role": "user", "content": "日本語 & <b>"},
]
CHATML = (
    "{% for message in messages %}\n  {{- bos_token + '<|im_start|>' + message.role + '\n' + message.content }}"
    "{{ eos_token }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

each = pytest.mark.parametrize("name", ["bytes", "bpe", "world"])


@pytest.fixture(scope="module")
def tokenizer_of() -> dict[str, Tokenizer]:
    library = BpeTokenizer.train([TEXT], 600).to_backend()
    library.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return {"bytes": ByteTokenizer(), "bpe": BpeTokenizer(library), "world": WorldTokenizer()}


@pytest.fixture(scope="module")
def folder_of(tokenizer_of: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders, without weights."""
    folders = {name: tmp_path_factory.mktemp(name) for name in tokenizer_of}
    for name, tokenizer in tokenizer_of.items():
        save_description(folders[name], model_config("goldfinch-L4-D64"), tokenizer, ChatTemplate(user="Ishmael"))
    return folders


@pytest.fixture(scope="module")
def theirs_of(folder_of: dict[str, Path]) -> dict[str, PreTrainedTokenizerFast]:
    return {name: AutoTokenizer.from_pretrained(folder) for name, folder in folder_of.items()}


@each
def test_auto_tokenizer_loads_a_model_folder(
    tokenizer_of: dict[str, Tokenizer], theirs_of: dict[str, PreTrainedTokenizerFast], name: str
) -> None:
    tokenizer, theirs = tokenizer_of[name], theirs_of[name]
    assert theirs(TEXT).input_ids == tokenizer.encode(TEXT)
    assert theirs.decode(tokenizer.encode(TEXT)) == TEXT
    assert theirs.is_fast
    assert theirs.eos_token_id == theirs.pad_token_id == theirs.bos_token_id == tokenizer.end_of_text
    assert theirs.model_max_length > 10**9
    assert theirs.apply_chat_template(CONVERSATION, tokenize=False) == ChatTemplate(user="Ishmael").render(
        CONVERSATION, add_generation_prompt=False
    )


@each
def test_batches_are_padded_on_the_left(theirs_of: dict[str, PreTrainedTokenizerFast], name: str) -> None:
    theirs = theirs_of[name]
    batch = theirs(["Whale", "The White Whale"], padding=True, return_tensors="pt")
    short, long = batch.input_ids.tolist()
    padding = len(long) - len(theirs("Whale").input_ids)
    assert padding > 0
    assert short == [theirs.pad_token_id] * padding + theirs("Whale").input_ids
    assert batch.attention_mask.tolist() == [[0] * padding + [1] * (len(long) - padding), [1] * len(long)]


@each
def test_offsets_select_the_text_of_each_token(theirs_of: dict[str, PreTrainedTokenizerFast], name: str) -> None:
    theirs = theirs_of[name]
    encoded = theirs(TEXT, return_offsets_mapping=True)
    for id, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        assert "\ufffd" in theirs.decode([id]) or theirs.decode([id]) == TEXT[start:end]


@each
def test_names_of_special_tokens_are_tokens_unless_split(
    tokenizer_of: dict[str, Tokenizer], theirs_of: dict[str, PreTrainedTokenizerFast], name: str
) -> None:
    tokenizer, theirs = tokenizer_of[name], theirs_of[name]
    text = f"one{END_OF_TEXT}two"
    assert theirs(text).input_ids == [*tokenizer.encode("one"), tokenizer.end_of_text, *tokenizer.encode("two")]
    assert theirs(text, split_special_tokens=True).input_ids == tokenizer.encode(text)


@each
def test_saved_by_transformers_it_is_our_tokenizer_again(
    tokenizer_of: dict[str, Tokenizer], folder_of: dict[str, Path], name: str, tmp_path: Path
) -> None:
    tokenizer, theirs = tokenizer_of[name], AutoTokenizer.from_pretrained(folder_of[name])
    theirs(["a", "b c"], padding=True, truncation=True, max_length=4)  # which changes its settings
    theirs.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(loaded) is type(tokenizer)
    assert (loaded.hash, loaded.end_of_text) == (tokenizer.hash, tokenizer.end_of_text)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert ChatTemplate.load(tmp_path) == ChatTemplate(user="Ishmael")
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (again.padding_side, again.pad_token, again(TEXT).input_ids) == ("left", END_OF_TEXT, tokenizer.encode(TEXT))


@each
def test_there_and_back(tokenizer_of: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizer_of[name]
    theirs = to_huggingface(tokenizer, ChatTemplate(CHATML))
    assert isinstance(theirs, PreTrainedTokenizerFast)
    assert theirs(TEXT).input_ids == tokenizer.encode(TEXT)
    back, template = from_huggingface(theirs)
    assert (type(back), back.hash, template) == (type(tokenizer), tokenizer.hash, ChatTemplate(CHATML))
    assert from_huggingface(to_huggingface(tokenizer))[1] is None


def test_the_default_of_several_chat_templates_comes_back() -> None:
    theirs = to_huggingface(ByteTokenizer())
    theirs.chat_template = {"default": ChatTemplate.plain().source, "tool_use": "{{ tools }}"}
    assert from_huggingface(theirs)[1] == ChatTemplate.plain()


def test_a_tokenizer_without_a_file_does_not_come_back() -> None:
    class Words(PythonBackend):
        vocab_size = 0

        def get_vocab(self) -> dict[str, int]:
            return {}

        def _tokenize(self, text: str) -> list[str]:
            return text.split()

        def _convert_token_to_id(self, token: str) -> int:
            return 0

    with pytest.raises(UserError, match=r"Words is written in Python: only tokenizers with a tokenizer\.json"):
        from_huggingface(Words())


# Chat


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize(
    "template",
    [ChatTemplate(), ChatTemplate(user="Ishmael", assistant='"Ahab"\n'), ChatTemplate.plain(), ChatTemplate(CHATML)],
    ids=["RWKV", "other names", "plain", "ChatML"],
)
@each
def test_conversations_are_the_same_text_and_tokens(
    tokenizer_of: dict[str, Tokenizer], name: str, template: ChatTemplate, add_generation_prompt: bool
) -> None:
    tokenizer, theirs = tokenizer_of[name], to_huggingface(tokenizer_of[name], template)
    text = template.render(CONVERSATION, add_generation_prompt)
    options = {"add_generation_prompt": add_generation_prompt}
    assert theirs.apply_chat_template(CONVERSATION, tokenize=False, **options) == text
    ids = theirs.apply_chat_template(CONVERSATION, return_dict=False, **options)
    assert ids == tokenizer.encode(text, special_tokens=True)


def test_an_old_folder_without_tokenizer_config_still_has_its_ids(folder_of: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder_of["world"] / "tokenizer.json").read_bytes())
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT).input_ids == WorldTokenizer().encode(TEXT)


# Streaming


@each
def test_streams_have_whole_characters(
    tokenizer_of: dict[str, Tokenizer], theirs_of: dict[str, PreTrainedTokenizerFast], name: str
) -> None:
    tokenizer, theirs = tokenizer_of[name], theirs_of[name]
    text = "中文 😀é𐍈 word\nno ё한"
    ids = tokenizer.encode(text)
    streamer = TextIteratorStreamer(theirs)
    for id in ids:
        streamer.put(torch.tensor([id]))
    streamer.end()
    pieces = list(streamer)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    decoder = DecodeStream(skip_special_tokens=True)
    pieces = [piece for id in ids if (piece := decoder.step(theirs.backend_tokenizer, id)) is not None]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@each
def test_half_a_character_at_the_end_is_a_replacement_character(
    tokenizer_of: dict[str, Tokenizer], theirs_of: dict[str, PreTrainedTokenizerFast], name: str
) -> None:
    tokenizer, theirs = tokenizer_of[name], theirs_of[name]
    ids = tokenizer.encode("word 𐍈")[:-1]
    streamer = TextIteratorStreamer(theirs)
    for id in ids:
        streamer.put(torch.tensor([id]))
    streamer.end()
    assert "".join(streamer) == theirs.decode(ids) == tokenizer.decode(ids)
    assert theirs.decode(ids).endswith("\ufffd")


def test_the_tokenizer_config_is_plain(folder_of: dict[str, Path]) -> None:
    """Other libraries than `transformers` read it."""
    assert json.loads((folder_of["bytes"] / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
