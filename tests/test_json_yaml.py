"""JSON and YAML from damaged or hostile files: plain values, or one line of what is wrong."""

import pytest

from goldfinch.errors import UserError
from goldfinch.json_yaml import read_json, read_yaml

BAD_JSON = {
    "brackets": (b"[" * 100_000, "nested too deeply"),
    "braces": (b'{"a":' * 100_000, "nested too deeply"),
    "a key twice": (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    "NaN": (b'{"a": NaN}', "NaN is not a number"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is not a number"),
    "a large float": (b'{"a": 1e999}', "1e999 is too large a number"),
    "a large integer": (b'{"a": ' + b"1" * 100_000 + b"}", "integer string conversion"),
    "a long text": (b'{"a": "' + b"x" * (20 << 20) + b'"}', "more than 16,777,216 bytes"),
    "no text": (b"\xff", "is not UTF-8 text, at byte 0"),
    "half": (b'{"a"', "is not valid JSON"),
    "nothing": (b"", "is not valid JSON"),
}
LAUGHS = b"a: &a [x, x]\n" + b"".join(
    b"%c: &%c [*%c, *%c]\n" % (letter + 1, letter + 1, letter, letter) for letter in range(ord("a"), ord("y"))
)
BAD_YAML = {
    "brackets": (b"[" * 20_000, "nested too deeply"),
    "aliases that would fill the memory": (LAUGHS, "aliases"),
    "a key twice": (b"a: 1\na: 2", "the key 'a' occurs twice"),
    "an object": (b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
    "a control character": (b"a: \x00", "is not valid YAML"),
}


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [(read_json, *case) for case in BAD_JSON.values()] + [(read_yaml, *case) for case in BAD_YAML.values()],
    ids=[f"JSON: {name}" for name in BAD_JSON] + [f"YAML: {name}" for name in BAD_YAML],
)
def test_what_is_wrong_is_one_line_that_names_the_file(read, content, message, tmp_path):
    path = tmp_path / "settings"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(error.value).startswith((str(path), f"cannot read {path}"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 300


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path, message in ((tmp_path / "gone", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"cannot read {path}: {message}"):
            read_json(path)


def test_plain_values_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, 2.5, null, true, "x"], "b": {"a": 1}}')
    (tmp_path / "a.yaml").write_text("a: [1, 2.5, null, true, x]\nb:\n  a: 1\n")
    assert read_json(tmp_path / "a.json") == read_yaml(tmp_path / "a.yaml")
