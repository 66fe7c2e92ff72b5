"""Two small tasks from the novel that ships with GoldFinch, in the forms of LAMBADA and HellaSwag: no network needed.

They are made from the chapters that `goldfinch quickstart` does not train on with its default seed. They say whether a
model of English prose works and improves; nobody else's numbers can be compared with theirs.
"""

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from goldfinch.data.documents import Document
from goldfinch.data.moby_dick import VALIDATION_FRACTION, moby_dick_chapters
from goldfinch.data.train_validation_split import Splitter

MIN_WORDS, MAX_WORDS = 40, 70
"""Of a passage whose last word is asked for."""
CONTEXT_WORDS, ENDING_WORDS, NUM_ENDINGS = 24, 12, 4


def cloze() -> list[dict[str, Any]]:
    """LAMBADA's form: passages whose last word, of at least four letters, has occurred in them before."""
    passages = []
    for words in _paragraphs(MIN_WORDS):
        for length in range(min(len(words), MAX_WORDS), MIN_WORDS - 1, -1):
            last = words[length - 1]
            if re.fullmatch(r"[A-Za-z]{4,}", last) and last in words[: length - 1]:
                passages.append({"text": " ".join(words[:length])})
                break
    return passages


def endings() -> list[dict[str, Any]]:
    """HellaSwag's form: the beginning of a paragraph, and four endings, three of them from other paragraphs."""
    draw = random.Random(0)
    paragraphs = list(_paragraphs(CONTEXT_WORDS + ENDING_WORDS))
    questions = []
    for number, words in enumerate(paragraphs):
        others = draw.sample([each for each in range(len(paragraphs)) if each != number], NUM_ENDINGS - 1)
        choices = [_ending(paragraphs[each]) for each in others]
        label = draw.randrange(NUM_ENDINGS)
        choices.insert(label, _ending(words))
        context = {"activity_label": "Moby-Dick", "ctx_a": " ".join(words[:CONTEXT_WORDS]), "ctx_b": ""}
        questions.append(context | {"endings": choices, "label": str(label)})
    return questions


def _ending(words: list[str]) -> str:
    return " ".join(words[CONTEXT_WORDS : CONTEXT_WORDS + ENDING_WORDS])


def _paragraphs(min_words: int) -> Iterator[list[str]]:
    """The words of the paragraphs of the held-out chapters, of those that are long enough."""
    chapters = [Document(text, source="moby_dick", line=line) for line, text in enumerate(moby_dick_chapters(), 1)]
    splitter = Splitter.plan(chapters, VALIDATION_FRACTION, seed=0)
    for split, chapter in splitter.assign(chapters) if splitter is not None else ():
        for paragraph in chapter.text.split("\n\n") if split == "validation" else ():
            words = paragraph.split()
            if len(words) >= min_words:
                yield words


TASKS: dict[str, tuple[str, str, Callable[[], list[dict[str, Any]]]]] = {
    "moby_dick_cloze": ("lambada_openai", "test", cloze),
    "moby_dick_endings": ("hellaswag", "validation", endings),
}
"""Name -> the task of lm-eval whose form it has, the split that is evaluated, and its documents."""
