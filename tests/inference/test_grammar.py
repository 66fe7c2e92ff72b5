"""Text that must match a JSON schema, a regular expression or a grammar, whatever the model would rather write."""

import json
import re
import subprocess
import sys

import pytest
import torch

import goldfinch as gf
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer, WorldTokenizer
from goldfinch.errors import UserError
from goldfinch.inference.batch import Batch
from goldfinch.inference.grammar import MAX_RULES, MAX_SCHEMA_DEPTH
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.sampling import Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["whale", "captain", "\u00e9l\u00e8ve \u4f60"]},
        "age": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 150}, {"type": "null"}]},
        "ships": {"type": "array", "items": {"$ref": "#/$defs/ship"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "kind", "age", "ships"],
    "additionalProperties": False,
    "$defs": {
        "ship": {
            "type": "object",
            "properties": {"afloat": {"type": "boolean"}, "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"}},
            "required": ["afloat"],
            "additionalProperties": False,
        }
    },
}


def is_person(value):
    return (
        list(value) == ["name", "kind", "age", "ships"]
        and isinstance(value["name"], str)
        and len(value["name"]) <= 8
        and value["kind"] in PERSON["properties"]["kind"]["enum"]
        and (value["age"] is None or (type(value["age"]) is int and 0 <= value["age"] <= 150))
        and 1 <= len(value["ships"]) <= 2
        and all(is_ship(ship) for ship in value["ships"])
    )


def is_ship(value):
    code = value.get("code", "AB-1")
    return set(value) | {"code"} == {"afloat", "code"} and re.fullmatch("[A-Z]{2}-[0-9]+", code) is not None


def bpe():
    return BpeTokenizer.train(['{"name": "the whale", "age": 30, "ships": [{"afloat": true}]}'] * 5, 300)


@pytest.fixture(scope="module", params=[ByteTokenizer, bpe, WorldTokenizer])
def lm(request, small_config, small_model):
    tokenizer = request.param()
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=tokenizer.vocab_size)
    return LanguageModel(small_model(config, torch.float32), tokenizer)


@pytest.fixture(scope="module")
def byte_lm(small_config, small_model):
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=257)
    return LanguageModel(small_model(config, torch.float32), ByteTokenizer())


@pytest.mark.parametrize("sampling", [{"temperature": 1.5}, {"temperature": 0.7, "top_k": 5, "min_p": 0.1}])
def test_any_model_writes_json_that_is_valid_under_the_schema_or_is_cut(lm, sampling):
    grammar = gf.Grammar.json_schema(PERSON)
    reasons = set()
    for seed in range(6):
        generation = lm.generate("A person:", max_tokens=300, grammar=grammar, seed=seed, **sampling)
        reasons.add(generation.finish_reason)
        if generation.finish_reason == "stop":
            assert is_person(json.loads(generation.text)), generation.text
        else:
            assert len(generation.token_ids) == 300
            with pytest.raises(ValueError, match=r"(?i)expecting|unterminated|invalid"):
                json.loads(generation.text)
    assert "stop" in reasons


def test_a_text_that_is_cut_says_length(byte_lm):
    generation = byte_lm.generate("x", max_tokens=5, grammar=gf.Grammar.json_schema(PERSON), seed=0)
    assert generation.finish_reason == "length"
    assert len(generation.token_ids) == 5
    assert "{".startswith(generation.text.strip()[:1])


def test_generation_ends_where_nothing_can_follow_and_the_context_with_it(lm):
    context = lm.read("Say it:")
    generation = context.generate(grammar=gf.Grammar.regex("(yes|no)!"), seed=0)
    assert generation.text in ("yes!", "no!")
    assert generation.finish_reason == "stop"
    assert context.ids() == [*lm.encode("Say it:").tolist(), *generation.token_ids]
    torch.testing.assert_close(context.logits, lm.read(context.ids()).logits, rtol=0, atol=1e-4)


def test_the_end_of_text_is_allowed_exactly_where_the_text_may_end(lm):
    end, digits = lm.tokenizer.end_of_text, gf.Grammar.regex("[0-9]{3,5}")
    eager = lm.generate("Count:", grammar=digits, seed=0, logit_bias={end: 1e4})
    assert re.fullmatch("[0-9]{3,5}", eager.text)
    assert eager.finish_reason == "stop"
    never = lm.generate("Count:", grammar=digits, seed=0, ignore_eos=True, logit_bias={end: 1e4})
    assert re.fullmatch("[0-9]{5}", never.text)
    assert never.finish_reason == "stop"


def test_other_stop_tokens_are_allowed_where_the_text_may_end(byte_lm):
    stop, digits = ord("."), gf.Grammar.regex("[0-9]{3,5}")
    generation = byte_lm.generate("Count:", grammar=digits, seed=0, stop=stop, logit_bias={stop: 1e4})
    assert re.fullmatch("[0-9]{3}", generation.text)
    assert generation.finish_reason == "stop"


def test_a_stop_string_ends_the_text_within_the_grammar(byte_lm):
    generation = byte_lm.generate("x", grammar=gf.Grammar.regex("aaaa=b{9}"), stop="=", seed=0)
    assert (generation.text, generation.finish_reason) == ("aaaa", "stop")


def test_a_grammar_of_the_empty_text_ends_at_once(byte_lm):
    for ignore_eos in (False, True):
        generation = byte_lm.generate("x", grammar=gf.Grammar.regex("()"), ignore_eos=ignore_eos, max_tokens=4)
        assert (generation.text, generation.finish_reason) == ("", "stop")


def test_a_lark_grammar_is_followed_over_several_rules(lm):
    grammar = gf.Grammar.lark('start: sum\nsum: NUMBER ("+" NUMBER)+ "=" "\u00e9"\nNUMBER: /[1-9][0-9]?/')
    for seed in range(4):
        text = lm.generate("1", max_tokens=200, grammar=grammar, seed=seed).text
        assert re.fullmatch("[1-9][0-9]?(\\+[1-9][0-9]?)+=\u00e9", text)


def test_characters_may_be_split_over_tokens_in_json_strings(byte_lm):
    grammar = gf.Grammar.json_schema({"type": "string", "minLength": 6, "maxLength": 6})
    bias = dict.fromkeys(range(128, 256), 8.0)
    texts = [byte_lm.generate("x", max_tokens=40, grammar=grammar, seed=seed, logit_bias=bias) for seed in range(5)]
    assert all(len(json.loads(generation.text)) == 6 for generation in texts)
    assert all(len(generation.text.encode()) > len(generation.text) for generation in texts)


def test_any_json_object_can_be_asked_for(byte_lm):
    letters = dict.fromkeys(b'"}:,1', 5.0)
    text = byte_lm.generate("x", grammar=gf.Grammar.json_object(), seed=1, logit_bias=letters, max_tokens=500).text
    assert isinstance(json.loads(text), dict)


def test_between_tokens_of_json_there_is_little_space(byte_lm):
    spaces = dict.fromkeys(b" \n\t\r", 10000.0)
    schema = {"type": "array", "items": {"const": 7}, "minItems": 2, "maxItems": 2}
    text = byte_lm.generate("x", grammar=gf.Grammar.json_schema(schema), seed=0, logit_bias=spaces).text
    assert json.loads(text) == [7, 7]


def test_the_same_seed_gives_the_same_text_alone_and_in_a_batch_of_other_grammars(lm):
    grammars = [gf.Grammar.json_schema(PERSON), None, gf.Grammar.regex("[a-f]{4,30}"), gf.Grammar.lark('start: "x"+')]
    prompts = ["A person:", "Call me", "The", "x"]
    batch, states = Batch(), []
    for row, (prompt, grammar) in enumerate(zip(prompts, grammars, strict=True)):
        sampling = Sampling(seed=row, grammar=grammar, top_p=0.9)
        states.append(lm.read(prompt).generation_state(sampling, max_tokens=40))
        batch.add(states[-1])
        batch.step()
    while len(batch):
        batch.step()
    for row, (prompt, grammar) in enumerate(zip(prompts, grammars, strict=True)):
        alone = lm.generate(prompt, seed=row, grammar=grammar, top_p=0.9, max_tokens=40)
        together = states[row].result()
        assert (together.text, together.token_ids) == (alone.text, alone.token_ids)
        assert together.finish_reason == alone.finish_reason


def test_prompts_of_one_batch_share_a_grammar(byte_lm):
    for generation in byte_lm.generate(["a", "bc", "def"], grammar=gf.Grammar.regex("[xy]{3}"), seed=0):
        assert re.fullmatch("[xy]{3}", generation.text)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 3, "temperature": 0.8}])
def test_drafts_change_nothing_but_the_number_of_passes(lm, settings):
    # The prompt has what the grammar allows, and after that something else.
    prompt = 'the sea, the whale; the sea, the ship; {"sea": 1, "the sea, the whale": '
    grammar = gf.Grammar.lark('start: "the sea, the " ("whale" | "ship") ("; the sea, the " ("whale" | "ship")){3} "."')
    generations = []
    for max_draft_tokens in (0, 1, 8):
        context = lm.read(prompt)
        generations.append(context.generate(grammar=grammar, max_draft_tokens=max_draft_tokens, **settings))
        assert context.ids()[len(lm.encode(prompt)) :] == list(generations[-1].token_ids)
        assert generations[-1].finish_reason == "stop"
    without, one, many = generations
    assert without.token_ids == one.token_ids == many.token_ids
    assert without.num_accepted == 0
    assert many.num_forward_passes < without.num_forward_passes


def test_tokens_without_a_choice_are_drafted_and_always_accepted(lm):
    grammar = gf.Grammar.regex("The one and only text that there can be.")
    generation = lm.generate("x", grammar=grammar, seed=0)
    assert generation.text == grammar.source.replace("\\", "")[:-1] + generation.text[-1]
    assert generation.num_draft_tokens == generation.num_accepted > 0


def test_the_log_probabilities_are_those_of_the_model(byte_lm):
    context = byte_lm.read("x")
    logits = context.logits.clone()
    generation = context.generate(grammar=gf.Grammar.regex("[qz]"), seed=0, logprobs=1)
    (token,) = generation.logprobs
    assert token.token_id in b"qz"
    assert token.logprob == pytest.approx(float(logits.log_softmax(-1)[token.token_id]), abs=1e-5)
    assert token.top[0][0] == int(logits.argmax())


@pytest.mark.parametrize(
    ("schema", "place", "reason"),
    [
        ({"properties": {"a": {"items": {"type": "objekt"}}}}, "/properties/a/items", "objekt"),
        ({"anyOf": [{"type": "null"}, {"type": "array", "uniqueItems": True}]}, "/anyOf/1", "uniqueItems"),
        (
            {"items": {"$ref": "#/$defs/b"}, "$defs": {"b": {"anyOf": [{"type": "null"}, {"pattern": "x(y"}]}}},
            "/$defs/b/anyOf/1",
            "unclosed group at '(y'",
        ),
        ({"$ref": "#/$defs/none"}, "the top", "does not exist"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "the top", "minimum (3) is greater than maximum (1)"),
    ],
)
def test_a_mistake_in_a_schema_is_named_with_its_place(schema, place, reason):
    with pytest.raises(UserError, match=f"at {re.escape(place)}: .*{re.escape(reason)}"):
        gf.Grammar.json_schema(schema)


@pytest.mark.parametrize(
    ("make", "source", "message"),
    [
        ("regex", "a(b", "at '(b': unclosed group"),
        ("regex", "a(?=b)", "look-around"),
        ("regex", 3, "must be a text, not 3"),
        ("lark", 'start: "a" b\n', 'line 1, column 8: unknown name: "b"'),
        ("lark", "start: A\nA: /x(/", "line 2, column 4: unclosed group at '('"),
        ("lark", 'begin: "a"', "no start rule"),
        ("lark", "", "Empty grammar"),
        ("json_schema", "{'type': 1}", "not valid JSON: .*line 1 column 2"),
        ("json_schema", "[]", "must be an object"),
        ("json_schema", True, "must be a dict or a JSON text, not True"),
        ("json_schema", {"minimum": float("nan")}, "cannot be written as JSON"),
        ("json_schema", '{"items":' * 200 + "{}" + "}" * 200, "recursion limit"),
    ],
)
def test_a_mistake_in_a_grammar_is_refused_when_it_is_made(make, source, message):
    with pytest.raises(UserError, match=re.escape(message).replace(r"\.\*", ".*")):
        getattr(gf.Grammar, make)(source)


def test_what_is_no_grammar_is_refused(byte_lm):
    with pytest.raises(UserError, match=r"grammar must be a gf\.Grammar"):
        byte_lm.generate("x", grammar={"type": "object"})
    with pytest.raises(UserError, match="kind of a grammar must be one of json_schema, regex, lark, not 'xml'"):
        gf.Grammar("xml", "<a/>")


def chain(length):
    links = {f"d{number}": {"anyOf": [{"$ref": f"#/$defs/d{number + 1}"}]} for number in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "null"}}}


def test_long_chains_of_rules_are_refused_before_they_overflow_the_stack():
    # In a process of its own: it would end without a word.
    code = """
import json, sys, goldfinch as gf
schema, rules = json.load(sys.stdin)
gf.Grammar.json_schema(schema); gf.Grammar.lark(rules)
"""
    rules = ["start: r0", *(f"r{number}: r{number + 1}" for number in range(MAX_RULES - 2)), f'r{MAX_RULES - 2}: "x"']
    longest = chain(MAX_SCHEMA_DEPTH // 3 - 5)
    given = json.dumps([longest, "\n".join(rules)])
    assert subprocess.run([sys.executable, "-c", code], input=given, text=True, check=False).returncode == 0
    with pytest.raises(UserError, match=f"more than {MAX_SCHEMA_DEPTH:,} levels"):
        gf.Grammar.json_schema(chain(MAX_SCHEMA_DEPTH // 3 + 5))
    with pytest.raises(UserError, match=f"more than {MAX_RULES:,} colons"):
        gf.Grammar.lark("\n".join([*rules, 'more: "y"']))


def test_a_grammar_that_becomes_too_large_ends_its_own_generation_only(byte_lm):
    too_large = gf.Grammar.regex("(a{1000}){1000}")
    with pytest.raises(UserError, match="regular expression cannot be followed"):
        byte_lm.generate("x", grammar=too_large, seed=0)
    batch = Batch()
    states = []
    for grammar in (None, too_large, gf.Grammar.regex("[xy]{9}")):
        states.append(byte_lm.read("x").generation_state(Sampling(seed=0, grammar=grammar), max_tokens=9))
        try:
            batch.add(states[-1])
        except UserError:
            assert grammar is too_large
    while len(batch):
        batch.step()
    assert states[0].result().token_ids == byte_lm.generate("x", seed=0, max_tokens=9).token_ids
    assert re.fullmatch("[xy]{9}", states[2].result().text)


def test_no_token_left_to_choose_ends_one_generation_of_a_batch_only(byte_lm):
    never_b = Sampling(seed=0, grammar=gf.Grammar.regex("ab"), logit_bias={ord("b"): -1e39})
    states = [byte_lm.read("x").generation_state(sampling, max_tokens=9) for sampling in (never_b, Sampling(seed=0))]
    batch = Batch()
    for state in states:
        batch.add(state)
    while len(batch):
        batch.step()
    assert "no token to choose" in str(states[0].error)
    assert states[0].result().text == "a"
    assert states[1].error is None
    assert states[1].result().token_ids == byte_lm.generate("x", seed=0, max_tokens=9).token_ids
    with pytest.raises(UserError, match="no token to choose"):
        byte_lm.generate(["x", "y"], sampling=never_b)


def test_special_tokens_can_be_named_in_lark_and_unknown_ones_are_refused(byte_lm):
    named = byte_lm.generate("x", grammar=gf.Grammar.lark('start: "a" <|endoftext|>'), ignore_eos=True, max_tokens=9)
    assert named.text == "a"
    with pytest.raises(UserError, match=r"unknown special token: \"<\|nothing\|>\""):
        byte_lm.generate("x", grammar=gf.Grammar.lark('start: "a" <|nothing|>'))


def test_a_model_without_a_tokenizer_cannot_follow_a_grammar(small_config, small_model):
    lm = LanguageModel(small_model(small_config("finch", vocab_size=41), torch.float32), None)
    with pytest.raises(UserError, match="no tokenizer"):
        lm.generate([1, 2], grammar=gf.Grammar.regex("a"))


def test_grammars_are_read_from_files_by_their_ending(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(PERSON))
    (tmp_path / "a.lark").write_text('start: "a"')
    assert gf.Grammar.read(tmp_path / "a.json") == gf.Grammar("json_schema", json.dumps(PERSON))
    assert gf.Grammar.read(tmp_path / "a.lark") == gf.Grammar.lark('start: "a"')
    (tmp_path / "b.lark").write_text("start: a")
    with pytest.raises(UserError, match=r"b\.lark: the Lark grammar is invalid"):
        gf.Grammar.read(tmp_path / "b.lark")
    with pytest.raises(UserError, match=r"JSON schema \(\.json\) or Lark grammar \(\.lark\): rename"):
        gf.Grammar.read(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"cannot read .*none\.json"):
        gf.Grammar.read(tmp_path / "none.json")


def test_without_its_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"pip install 'goldfinch\[serve\]'"):
        gf.Grammar.regex("a")
