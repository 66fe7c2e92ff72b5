"""Arguments of a wrong type or out of range are named in one line; what is merely of another kind of integer works."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import goldfinch as gf
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError


@pytest.fixture(scope="module")
def lm():
    return gf.LanguageModel(gf.build("goldfinch-L3-D64", vocab_size=257).model, ByteTokenizer())


NO_TEXT = {
    "None": (None, "not None"),
    "a number": (5, "not 5"),
    "a path": (Path("x.txt"), "read_text"),
    "bytes": (b"abc", "decode"),
    "a dict": ({1: 2}, "not {1: 2}"),
    "a set": ({1}, "not {1}"),
    "a generator": ((token for token in (1, 2)), "not <generator"),
    "floats": ([1.5], r"integers, not \[1.5\]"),
    "an array of floats": (np.array([1.0]), "integers"),
    "booleans": ([True, False], "integers"),
    "a large id": ([2**70], "token id 1180591620717411303424 is outside"),
    "an id of 64 bits": ([2**63], "token id 9223372036854775808 is outside"),
    "a negative id": ([-1], "token id -1 is outside"),
    "ids and text": ([1, "a"], "list of texts"),
    "ids and None": ([1, None], "integers"),
    "no tokens": ("", "no tokens"),
}
CALLS = {
    "encode": lambda lm, text: lm.encode(text),
    "read": lambda lm, text: lm.read(text),
    "append": lambda lm, text: lm.read("a").read(text),
    "generate": lambda lm, text: lm.generate(text, max_tokens=1),
    "stream": lambda lm, text: list(lm.stream(text, max_tokens=1)),
    "continuation": lambda lm, text: lm.score(prefix="a", continuations=[text]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("text", "message"), NO_TEXT.values(), ids=NO_TEXT)
def test_what_is_neither_a_text_nor_token_ids_is_refused(call, text, message, lm):
    with pytest.raises(UserError, match=message) as error:
        call(lm, text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_several_texts_where_one_is_needed_name_the_call_that_takes_several(lm):
    for texts in (["a", "b"], [[1, 2], [3, 4]], [[1, 2], [3]]):
        with pytest.raises(UserError, match=r"generate. takes several|several lengths"):
            lm.read(texts)


@pytest.mark.parametrize(
    "ids",
    [(1, 2), range(1, 3), [np.int64(1), np.uint8(2)], torch.tensor([1, 2], dtype=torch.int16)]
    + [np.array([1, 2], dtype=dtype) for dtype in ("u1", "u2", "u4", "u8", "i4")]
    + [torch.tensor([1, 2], dtype=torch.uint16)],
    ids=repr,
)
def test_integers_of_any_kind_are_token_ids(ids, lm):
    assert lm.encode(ids).tolist() == [1, 2]
    assert len(lm.generate(ids, max_tokens=1).token_ids) == 1


def test_logits_say_which_shape_they_need(lm):
    for wrong, message in (("Call me", r"lm.encode\(text\)\[None\]"), ([1, 2], r"\[None\] makes a batch"), ([[]], "0")):
        with pytest.raises(UserError, match=message):
            lm.logits(wrong)
    assert lm.logits(np.array([[1, 2]], dtype=np.uint16)).shape == (1, 2, 257)


WRONG_SETTINGS = [
    ({"top_k": 1.5}, "top_k must be a whole number of at least 0, not 1.5"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"seed": "a"}, "seed must be a whole number"),
    ({"seed": 2**64}, "seed must be a whole number from 0 to 9223372036854775807"),
    ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
    ({"temperature": None}, "temperature must be a number, not None"),
    ({"temperature": True}, "temperature must be a number, not True"),
    ({"temperature": 10**400}, "temperature must be a number"),
    ({"presence_penalty": float("nan")}, "presence_penalty must be a number, not nan"),
    ({"presence_penalty": float("-inf")}, "presence_penalty must be a finite number"),
    ({"frequency_penalty": [1]}, "frequency_penalty must be a number"),
    ({"logit_bias": [1]}, "logit_bias must map token ids to numbers"),
    ({"logit_bias": {"a": 1}}, "a token id of logit_bias must be a whole number"),
    ({"logit_bias": {1: "x"}}, "logit_bias must be a number"),
    ({"logit_bias": {300: 1}}, "logit_bias names token 300"),
    ({"logit_bias": dict.fromkeys(range(257), float("-inf"))}, "leave no token to choose"),
    ({"stop": [1.5]}, "a stop token id must be a whole number"),
    ({"stop": None}, "a stop token id must be a whole number"),
    ({"stop": b"x"}, "a stop token id must be a whole number"),
    ({"stop": ""}, "must not be empty"),
    ({"ignore_eos": "no"}, "ignore_eos must be True or False"),
    ({"max_tokens": -5}, "max_tokens must be a whole number of at least 0, not -5"),
    ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
    ({"max_tokens": None}, "max_tokens must be a whole number"),
    ({"logprobs": 1.5}, "logprobs must be a whole number"),
    ({"max_draft_tokens": 1.5}, "max_draft_tokens must be a whole number"),
    ({"max_new_tokens": 5}, "did you mean max_tokens"),
    ({"sampling": {"top_p": 1}}, "sampling must be a gf.Sampling"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG_SETTINGS, ids=[str(s)[:40] for s, _ in WRONG_SETTINGS])
def test_a_wrong_setting_names_itself(settings, message, lm):
    for prompt in ("Call me", ["Call me"]):
        with pytest.raises(UserError, match=message):
            lm.generate(prompt, **{"max_tokens": 2} | settings)


@pytest.mark.parametrize("temperature", [1e-37, 1e-45, 1e-300, 5e-324, 0])
def test_a_tiny_temperature_is_greedy(temperature, lm):
    greedy = lm.generate("Call me", max_tokens=5, temperature=0).token_ids
    assert lm.generate("Call me", max_tokens=5, temperature=temperature, seed=0).token_ids == greedy


@pytest.mark.parametrize("settings", [{"top_p": 1e-300}, {"repetition_penalty": 1e-300}, {"presence_penalty": 1e300}])
def test_extreme_settings_still_choose_a_token(settings, lm):
    assert len(lm.generate("Call me", max_tokens=3, seed=0, ignore_eos=True, **settings).token_ids) == 3


def test_numpy_numbers_are_numbers(lm):
    plain = lm.generate("Call me", max_tokens=3, temperature=0.5, seed=3, top_k=5)
    settings = {"temperature": np.float64(0.5), "seed": np.int64(3), "top_k": np.uint8(5)}
    numpy = lm.generate("Call me", max_tokens=np.int32(3), **settings)
    assert numpy.token_ids == plain.token_ids


def test_other_arguments_are_named(lm, tmp_path):
    context = lm.read("Call me")
    for call, message in (
        (lambda: context.truncate(1.5), "length must be a whole number from 0 to 7"),
        (lambda: context.truncate(8), "length must be a whole number from 0 to 7, not 8"),
        (lambda: context.ids(-3), "start must be a whole number"),
        (lambda: context.read("a", name=5), "name must be a text, not 5"),
        (lambda: context.save(None), "path must be a path, not None"),
        (lambda: lm.open(5), "path must be a path, not 5"),
        (lambda: lm.save(""), "folder must be a path"),
        (lambda: gf.load(None), "path must be a path"),
        (lambda: gf.build(None), "preset must be a text"),
        (lambda: gf.build("goldfinch-L3-D64", seed=-1), "seed must be a whole number"),
        (lambda: gf.build("goldfinch-L3-D64", vocab_size=0), "vocab_size must be a whole number of at least 1"),
        (lambda: gf.build("goldfinch-L3-D64", dtype="int8"), "unknown dtype 'int8'"),
        (lambda: gf.build("goldfinch-L3-D64", device="meta"), "unknown device 'meta'"),
        (lambda: lm.context(budget=1.5), "budget must be a whole number"),
        (lambda: lm.context(budget=None), "budget must be a whole number"),
        (lambda: lm.context(latents=5), "unknown latent format 5"),
        (lambda: lm.score(prefix="a", continuations="b"), "a list of texts"),
        (lambda: lm.score(prefix="a", continuations=5), "a list of texts"),
        (lambda: lm.chat("hi"), "messages must be a list of messages"),
        (lambda: lm.chat({"role": "user", "content": "x"}), "messages must be a list of messages"),
        (lambda: lm.chat([]), "the list of messages is empty"),
        (lambda: lm.chat([{"role": "user", "content": 5}]), "the content of a chat message must be a text, not 5"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_decode_is_the_inverse_of_encode(lm):
    assert lm.decode(lm.encode("Call me Ishmaël")) == "Call me Ishmaël"
    assert lm.decode([]) == ""
    for wrong, message in (("abc", "token ids are needed"), (5, "token ids are needed"), ([300], "outside")):
        with pytest.raises(UserError, match=message):
            lm.decode(wrong)


CONFIG = {"vocab_size": 257, "width": 64, "time_mixes": ("finch",)}
TRAIN = {"model": CONFIG, "data": "d", "output": "r"}
WRONG_CONFIGS = [
    (gf.ModelConfig, CONFIG | {"width": 64.5}, "width must be a whole number, not 64.5"),
    (gf.ModelConfig, CONFIG | {"width": True}, "width must be a whole number, not True"),
    (gf.ModelConfig, CONFIG | {"time_mixes": None}, "time_mixes must be a list, not None"),
    (gf.ModelConfig, CONFIG | {"time_mixes": (5,)}, "time_mixes must be text, not 5"),
    (gf.ModelConfig, CONFIG | {"rope": "none"}, "rope must be a mapping"),
    (gf.RopeConfig, {"base": "a"}, "rope.base must be a number, not 'a'"),
    (gf.TrainConfig, TRAIN | {"steps": "many"}, "steps must be a whole number, not 'many'"),
    (gf.TrainConfig, TRAIN | {"batch_size": 2.5}, "batch_size must be a whole number"),
    (gf.TrainConfig, TRAIN | {"max_minutes": float("nan")}, "max_minutes must be a number, not nan"),
    (gf.TrainConfig, TRAIN | {"data": 5}, "data must be a list, not 5"),
    (gf.TrainConfig, TRAIN | {"device": "gpu"}, "unknown device 'gpu'"),
    (gf.TrainConfig, TRAIN | {"model": "goldfinch"}, "model must be a mapping"),
    (gf.TrainConfig, TRAIN | {"optimizer": {"lr": 1}}, "unknown field optimizer.lr"),
    (gf.ChatTemplate, {"source": 5}, "source must be a text, not 5"),
    (gf.Trainer, {"config": "x"}, "config must be a gf.TrainConfig, not 'x'"),
    (gf.LanguageModel, {"model": "x", "tokenizer": None}, "model must be a Decoder, not 'x'"),
]


@pytest.mark.parametrize(("cls", "fields", "message"), WRONG_CONFIGS, ids=[message for _, _, message in WRONG_CONFIGS])
def test_a_wrong_field_of_a_config_names_itself(cls, fields, message):
    with pytest.raises(UserError, match=message):
        cls(**fields)


def test_fields_of_a_config_get_their_types():
    config = gf.TrainConfig(**TRAIN | {"model": CONFIG | {"time_mixes": ["finch"], "width": np.int64(64)}})
    assert config.model == gf.ModelConfig(**CONFIG)
    assert (config.data, config.output) == (("d",), Path("r"))
    assert type(config.model.width) is int


def test_two_threads_in_one_context_are_noticed(lm):
    context = lm.read("Call me")
    inside, leave = threading.Event(), threading.Event()

    def wait(_):
        inside.set()
        leave.wait(10)

    thread = threading.Thread(target=lambda: context.read(" Ishmael", progress=wait))
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(UserError, match="two threads use one context at the same time"):
            context.generate(max_tokens=1)
    finally:
        leave.set()
        thread.join()
    assert len(context) == len("Call me Ishmael")
    assert len(context.fork().generate(max_tokens=2, ignore_eos=True).token_ids) == 2
