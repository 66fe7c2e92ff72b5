"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(headings: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table; the first `words` columns are left-aligned, numbers right-aligned."""
    rule = ["---"] * words + ["---:"] * (len(headings) - words)
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))
