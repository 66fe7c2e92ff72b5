"""Small data in the form of each of the paper's tasks, made from texts that are shipped: no benchmark, no network."""

import importlib.util
import json
import random
import re
from pathlib import Path

from goldfinch.evaluation.moby_dick_tasks import cloze, endings

MMLU_LETTERS = "ABCD"


def questions(count):
    """(beginning, four endings, the number of the right one) from Moby-Dick."""
    return [(each["ctx_a"], each["endings"], int(each["label"])) for each in endings()[:count]]


def documents(task, count):
    """The documents of one of the paper's tasks, with the fields of the original data."""
    if task == "lambada_openai":
        return cloze()[:count]
    if task == "hellaswag":
        return endings()[:count]
    if task == "wikitext":
        return [{"page": f"= Moby-Dick =\n\n{each['text']}"} for each in cloze()[:count]]
    return [_question(task, number, *each) for number, each in enumerate(questions(count))]


def _question(task, number, text, choices, label):
    letters = {"text": choices, "label": list(MMLU_LETTERS)}
    others = [choice for index, choice in enumerate(choices) if index != label]
    return {
        "piqa": {"goal": text, "sol1": choices[0], "sol2": choices[label or 1], "label": int(label > 0)},
        "arc_easy": {"question": text, "choices": letters, "answerKey": MMLU_LETTERS[label]},
        "arc_challenge": {"question": text, "choices": letters, "answerKey": MMLU_LETTERS[label]},
        "openbookqa": {"question_stem": text, "choices": letters, "answerKey": MMLU_LETTERS[label]},
        "sciq": {
            "support": text,
            "question": "What is next?",
            **{f"distractor{index}": other for index, other in enumerate(others, 1)},
            "correct_answer": choices[label],
        },
        "headqa_en": {
            "qtext": text,
            "answers": [{"aid": n, "atext": c} for n, c in enumerate(choices)],
            "ra": label + 1,
        },
        "winogrande": {
            "sentence": f"{text} _ {choices[0]}",
            "option1": "Ahab",
            "option2": "Ishmael",
            "answer": str(number % 2 + 1),
        },
    }[task]


def mmlu_questions(subject):
    """The five development questions of an MMLU subject, from the worked examples in lm-eval's own package."""
    root = Path(importlib.util.find_spec("lm_eval").origin).parent
    prompts = json.loads((root / "tasks" / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json").read_text())
    found = re.findall(r"Q: (.*?)\n\(A\) (.*?) \(B\) (.*?) \(C\) (.*?) \(D\) (.*?)\nA: .*?The answer is \((.)\)",
                       prompts[subject], flags=re.DOTALL)  # fmt: skip
    return [
        {"question": question, "choices": choices, "answer": MMLU_LETTERS.index(answer), "subject": subject}
        for question, *choices, answer in found
    ]


def write(folder, task, split, rows):
    """Write FOLDER/TASK/SPLIT.jsonl."""
    path = Path(folder) / task / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


SPLITS = {
    **dict.fromkeys(
        ["lambada_openai", "arc_easy", "arc_challenge", "sciq", "headqa_en", "openbookqa", "wikitext"], "test"
    ),
    **dict.fromkeys(["hellaswag", "piqa", "winogrande"], "validation"),
}
"""The paper's tasks, and the split on which each is evaluated."""


def write_all(folder, count=3):
    """Data for every task of the paper, and for one subject of MMLU."""
    for task, split in SPLITS.items():
        write(folder, task, split, documents(task, count))
    known = mmlu_questions("anatomy")
    write(folder, "mmlu_anatomy", "dev", known)
    write(folder, "mmlu_anatomy", "test", random.Random(0).sample(known, count))
