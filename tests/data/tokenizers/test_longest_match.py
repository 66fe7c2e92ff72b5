"""The regular expression of a vocabulary finds what greedy longest match does, in every engine."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from goldfinch.data.tokenizers.longest_match import longest_match_pattern

# What is special in regular expressions or in their classes, and characters of two to four bytes.
CHARACTERS = "ab^-]\\&|.?{ \n\té中😀"
texts = st.text(CHARACTERS, max_size=30)


def longest_match(tokens: list[str], text: str) -> list[str]:
    matches = []
    while text:
        length = max([1, *(len(token) for token in tokens if text.startswith(token))])
        matches.append(text[:length])
        text = text[length:]
    return matches


@settings(max_examples=300)
@given(tokens=st.lists(st.text(CHARACTERS, min_size=1, max_size=5), max_size=20), text=texts)
def test_matches_are_the_longest_tokens(tokens: list[str], text: str) -> None:
    tokens.append("ab")
    pattern = longest_match_pattern(tokens)
    assert re.findall(pattern, text) == longest_match(tokens, text)
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    assert [word for word, _ in split.pre_tokenize_str(text)] == longest_match(tokens, text)


def test_a_token_that_goes_on_long_is_given_up_for_the_last_that_ended() -> None:
    tokens = ["x", "xyxyxyxyxyz", "yx", "xyx"]
    assert re.findall(longest_match_pattern(tokens), "xyxyxyxyxy") == ["xyx", "yx", "yx", "yx", "y"]
