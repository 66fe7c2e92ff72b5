"""Requests as a tree: every text is somewhere in it, behind a prefix of its own, and the tree reads fewer tokens."""

from hypothesis import given, settings
from hypothesis import strategies as st

from goldfinch.evaluation.prefix_tree import prefix_tree


def nodes(root):
    waiting = [(root, 0)]
    while waiting:
        node, parent = waiting.pop()
        yield node, parent
        waiting += [(child, node.stop) for child in node.children]


def tokens_read(texts, root):
    return sum(
        node.stop - node.start + sum(len(texts[leaf]) - node.stop for leaf in node.leaves) for node, _ in nodes(root)
    )


@given(st.lists(st.lists(st.integers(0, 2), max_size=9), max_size=12), st.integers(1, 6))
@settings(max_examples=60)
def test_every_text_is_behind_prefixes_of_its_own(texts, min_saved):
    root = prefix_tree(texts, min_saved)
    assert sorted(leaf for node, _ in nodes(root) for leaf in node.leaves) == list(range(len(texts)))
    for node, parent in nodes(root):
        assert node.start == parent
        below = [leaf for each, _ in nodes(node) for leaf in each.leaves]
        if node is not root:
            assert (len(below) - 1) * (node.stop - node.start) >= min_saved
        for leaf in below:
            assert texts[leaf][: node.stop] == texts[node.text][: node.stop]


def test_the_tokens_of_a_shared_prefix_are_read_once():
    shots, questions = list(range(100)), [[200 + i, *range(10)] for i in range(7)]
    texts = [shots + question for question in questions] + [shots + questions[0]]
    root = prefix_tree(texts, min_saved=20)
    (few_shot,) = root.children
    assert (few_shot.start, few_shot.stop, len(few_shot.leaves)) == (0, 100, 8)
    assert tokens_read(texts, root) == 100 + 8 * 11
    assert tokens_read(texts, prefix_tree(texts, min_saved=11)) == 100 + 7 * 11


def test_texts_in_each_other_as_deep_as_they_are_many():
    texts = [list(range(n)) for n in range(1, 3001)]
    assert tokens_read(texts, prefix_tree(texts, min_saved=1)) == 3000


def test_no_requests_are_no_tree():
    assert prefix_tree([]).leaves == prefix_tree([]).children == []
