"""Chat templates as in the ecosystem, and conversations that are never read twice."""

import json

import pytest
import torch

import goldfinch as gf
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.inference.chat import ChatSession
from goldfinch.inference.language_model import LanguageModel

CHATML = (
    "{% for message in messages %}\n<|{{ message['role'] }}|>{{ message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who is Ahab?"},
    {"role": "assistant", "content": "A captain."},
    {"role": "user", "content": "Of what?"},
]


@pytest.fixture
def lm(small_config, small_model):
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=257)
    return LanguageModel(small_model(config, torch.float32), ByteTokenizer())


def test_the_default_is_the_format_of_rwkvs_chat_models():
    assert ChatTemplate().render(CONVERSATION) == (
        "Be brief.\n\nUser: Who is Ahab?\n\nAssistant: A captain.\n\nUser: Of what?\n\nAssistant:"
    )
    assert ChatTemplate(user="Bob", assistant="Alice").render(CONVERSATION[1:2]) == "Bob: Who is Ahab?\n\nAlice:"


def test_a_jinja_template_gets_what_those_for_transformers_rely_on():
    template = ChatTemplate(CHATML)
    assert template.render(CONVERSATION[1:2]) == "<|user|>Who is Ahab?<|end|><|assistant|>"
    assert template.turn_end() == "<|end|>"
    assert ChatTemplate("{{ messages | tojson }}").render([{"role": "user", "content": "é"}]) == (
        '[{"role": "user", "content": "é"}]'
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "not valid Jinja, line 1"),
        ("{{ raise_exception('no system messages') }}", "no system messages"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
    ],
)
def test_broken_refusing_and_hostile_templates_are_errors(source, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(source).render(CONVERSATION)


@pytest.mark.parametrize("messages", [["hello"], [{"role": "user"}], [{"content": "x"}]])
def test_messages_need_a_role_and_a_content(messages):
    with pytest.raises(UserError, match="role and a content"):
        ChatTemplate().render(messages)


def test_the_template_of_a_model_folder_is_used_saved_and_found_again(lm, tmp_path):
    lm.chat_template = ChatTemplate(CHATML)
    lm.save(tmp_path / "model")
    assert gf.load(tmp_path / "model").chat_template.source == CHATML
    (tmp_path / "model" / "chat_template.jinja").unlink()
    assert gf.load(tmp_path / "model").chat_template == ChatTemplate()
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    assert gf.load(tmp_path / "model").chat_template.source == CHATML


def test_chat_answers_what_generate_answers_after_the_rendered_conversation(lm):
    messages = CONVERSATION[1:2]
    expected = lm.generate("User: Who is Ahab?\n\nAssistant:", max_tokens=20, seed=1, stop="\n\n")
    answer = lm.chat(messages, max_tokens=20, seed=1)
    assert answer.token_ids == expected.token_ids
    assert answer.text == expected.text.removeprefix(" ")
    stopped = lm.chat(messages, max_tokens=200, seed=1, stop=answer.text[3:5])
    assert stopped.finish_reason == "stop"


def test_a_conversation_reads_every_token_once(lm, monkeypatch):
    from goldfinch.inference import sequence

    lengths = []

    def counting(model, ids, states, original=sequence.read_lower):
        lengths.append(ids.numel())
        return original(model, ids, states)

    monkeypatch.setattr(sequence, "read_lower", counting)
    session = ChatSession(lm.context(), ChatTemplate())
    for number in range(3):
        for _ in session.ask(f"Question {number}", max_tokens=10, seed=number, max_draft_tokens=0):
            pass
    session.keep_answer()
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 3
    assert sum(lengths) == len(session.context)
    # The context is the conversation as the template writes it, but for spaces that the model did not write.
    text = lm.tokenizer.decode(session.context.ids())
    written = ChatTemplate().render(session.messages, add_generation_prompt=False)
    assert written.replace(" ", "").startswith(text.replace(" ", ""))
