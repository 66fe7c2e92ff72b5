"""Chat templates as files: complete for programs that know no names, and the same again when they are read."""

from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfinch.data.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
NAMES = "{{ user }}/{{ assistant }}/{{ eos_token }}/{{ messages[0].content }}"
names = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\"\\'{}%\n\r\t"), max_size=8)


def rendered_elsewhere(template: ChatTemplate) -> str:
    """By a program with the settings of transformers, which has an end of text and no names."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    source = environment.from_string(template.standalone)
    return source.render(messages=MESSAGES, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")


@settings(max_examples=200)
@given(user=names, assistant=names)
def test_names_are_in_the_file(user: str, assistant: str) -> None:
    template = ChatTemplate(NAMES, user=user, assistant=assistant)
    assert rendered_elsewhere(template) == template.render(MESSAGES) == f"{user}/{assistant}//Hi"
    assert ChatTemplate.from_standalone(template.standalone) == template


@pytest.mark.parametrize(
    "source",
    [
        "\n\n{{ user }}",
        "  {% if user %}\n  yes {{ user }}\n  {% endif %}\n",
        "{%- if true %} {{ user }} {%- endif %}",
        "{% macro name() %}{{ user }}{% endmacro %}{{ name() }}",
        "{% for message in messages %}{{ user }}{% set user = 'inner' %}{{ user }}{% endfor %}",
        "{% if false %}{% set user = 'never' %}{% endif %}{{ user }}",
        "{{ messages | length }}\n",
    ],
)
def test_lines_before_a_template_change_nothing_else(source: str) -> None:
    template = ChatTemplate(source, user="Ishmael")
    assert rendered_elsewhere(template) == template.render(MESSAGES)
    assert ChatTemplate.from_standalone(template.standalone).source == source


def test_templates_without_names_are_written_as_they_are() -> None:
    assert ChatTemplate.plain().standalone == ChatTemplate.plain().source


@pytest.mark.parametrize(
    "text",
    [
        '{% set user = "You" %}\nbut no name is used',
        '{% set style = "bold" %}\n{{ user }}: {{ style }}',
        '{% set user = "\\x41" %}\n{{ user }}',
        '{% set assistant = "A" %}\n{% set user = "B" %}\n{{ user }} {{ assistant }}',
        '{% set eos_token = "</s>" %}\n{{ eos_token }}',
    ],
)
def test_what_others_set_is_left_alone(text: str) -> None:
    assert ChatTemplate.from_standalone(text) == ChatTemplate(text)


def test_a_folder_keeps_the_names(tmp_path: Path) -> None:
    template = ChatTemplate(user="Ishmael", assistant="Ahab")
    template.save(tmp_path)
    assert ChatTemplate.load(tmp_path) == ChatTemplate.read(tmp_path / "chat_template.jinja") == template
