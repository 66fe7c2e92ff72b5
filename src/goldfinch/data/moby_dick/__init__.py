"""The text that ships with GoldFinch: "Moby-Dick; or, The Whale" by Herman Melville (1851), public domain."""

import gzip
import re
from importlib import resources

VALIDATION_FRACTION = 0.06
"""Of the text, that `goldfinch quickstart` holds out, in whole chapters."""


def moby_dick() -> str:
    """The novel from "CHAPTER 1. Loomings." to the end of chapter 135: about 1.2 million characters."""
    return gzip.decompress(resources.files(__name__).joinpath("moby_dick.txt.gz").read_bytes()).decode()


def moby_dick_chapters() -> list[str]:
    """The 135 chapters in order, each with its heading; joined they are `moby_dick()` again."""
    # The look-ahead keeps the headings; at the very start of the text it also splits off an empty string.
    return [chapter for chapter in re.split(r"(?m)^(?=CHAPTER \d+\. )", moby_dick()) if chapter]
