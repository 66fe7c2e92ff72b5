"""Longest match as one regular expression: a trie written with groups, alternatives and character classes."""

from collections.abc import Iterable


class _Node:
    """What tokens have in common up to some character."""

    def __init__(self, *, ends: bool = False) -> None:
        self.ends = ends  # a token ends here
        self.num_tokens = 0  # that go on
        self.next: dict[str, _Node] = {}


def longest_match_pattern(tokens: Iterable[str]) -> str:
    """A regular expression whose matches, one after another, are the longest token at each place, or one character.

    A match looks ahead by no more than the longest token, so the time for a text is linear in its length, whatever it
    consists of. It has no feature in which the engines of different languages differ.

    >>> import re
    >>> re.findall(longest_match_pattern(["ab", "abcd", "."]), "abcabcd.x")
    ['ab', 'c', 'abcd', '.', 'x']

    Args:
        tokens: at least one has several characters.
    """
    root = _Node()
    for token in tokens:
        if len(token) > 1:
            node = root
            for character in token:
                node.num_tokens += 1
                if character not in node.next:
                    # A first character is also a match of its own.
                    node.next[character] = _Node(ends=node is root)
                node = node.next[character]
            node.ends = True
    # First what most characters of the world's scripts need: one class of those that begin no longer token.
    return "|".join([f"[^{_class_members(root.next)}]", *_alternatives(root)])


def _alternatives(node: _Node) -> list[str]:
    """What may follow, the commonest first."""
    branches = [(character, child) for character, child in node.next.items() if child.next]
    branches.sort(key=lambda branch: -branch[1].num_tokens)
    alternatives = [_escape(character) + _continuation(child) for character, child in branches]
    leaves = [character for character, child in node.next.items() if not child.next]
    if len(leaves) == 1:
        alternatives.append(_escape(leaves[0]))
    elif leaves:
        alternatives.append(f"[{_class_members(leaves)}]")
    return alternatives


def _continuation(node: _Node) -> str:
    alternatives = _alternatives(node)
    if node.ends:
        return f"(?:{'|'.join(alternatives)})?"
    return alternatives[0] if len(alternatives) == 1 else f"(?:{'|'.join(alternatives)})"


def _escape(character: str) -> str:
    return "\\" + character if character in r"\.[]{}()*+?^$|" else character


def _class_members(characters: Iterable[str]) -> str:
    return "".join("\\" + character if character in r"\[]^-" else character for character in sorted(characters))
