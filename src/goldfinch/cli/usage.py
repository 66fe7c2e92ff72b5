"""What tyro prints, as we print it: help that wraps at the terminal's width, and errors in one short line.

tyro prints plain text when its output is not a terminal: titles, rules of hyphens, and columns by indentation.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterator, Sequence

from goldfinch.settings import did_you_mean, nearest

COLUMNS = 129
"""The width at which tyro must print: the largest at which it keeps to one column."""
_RULE = re.compile(r"\s*-{5,}")
# Indented by 2, or by 4 and a bullet for a subcommand: a name, and after two spaces the start of its text.
_ENTRY = re.compile(r"  (?:  • )?([^\s•].*?)(?:\s{2,}(\S.*))?")
_UNSAID_DEFAULTS = re.compile(r"\s*\(default:\s*(''|None|none)?\)$")


def format_help(plain: str, width: int) -> str:
    """tyro's help, wrapped at `width` columns, without boxes and colours; as it is, where its layout is another."""
    lines = [line.rstrip() for line in plain.splitlines()]
    titles = [index for index, rule in enumerate(lines[1:]) if _RULE.fullmatch(rule) and lines[index][1:2] != " "]
    if not titles:
        return plain.rstrip()
    preface = lines[: titles[0]]
    usage, *paragraphs = _paragraphs(preface)
    out = [wrap(usage, width, " " * len("usage: ")).lstrip()]
    out += ["\n" + wrap(paragraph, width) for paragraph in paragraphs]
    column = min(26, width // 3)
    titled: set[str] = set()
    for start, stop in zip(titles, [*titles[1:], len(lines)], strict=True):
        title, body = lines[start].strip(), lines[start + 2 : stop]
        rule = next((index for index, line in enumerate(body) if _RULE.fullmatch(line)), None)
        description = [] if rule is None else _paragraphs(body[:rule])
        if title == "command options":  # of a subcommand, whose description stands above
            title, description = "options", []
        if title not in titled:
            out.append(f"\n{title}:")
        titled.add(title)
        out += [wrap(paragraph, width, "  ") for paragraph in description]
        for name, text in _entries(body if rule is None else body[rule + 1 :]):
            out.append(entry(name, text, width, column))
    return "\n".join(out)


def flags(plain: str) -> list[str]:
    """All long options in tyro's help."""
    lines = [line for line in plain.splitlines() if re.match(r"  -", line) and not _RULE.match(line)]
    return [flag for line in lines for flag in re.findall(r"(?<![\w-])--[\w.-]+", re.split(r"\s{2,}", line.strip())[0])]


def subcommands(plain: str) -> list[str]:
    """The subcommands in tyro's help."""
    return re.findall(r"^    • (\S+)", plain, re.MULTILINE)


def explain(framed: str, prog: str, args: Sequence[str], plain_help: str) -> str:
    """tyro's message about wrong arguments in one short line, with the nearest right name.

    Args:
        framed: what tyro printed.
        prog: the command with its subcommand, as users type it.
        args: the arguments.
        plain_help: tyro's help for this command.
    """
    known, commands = flags(plain_help), subcommands(plain_help)
    names = [re.split("[= ]", arg)[0].replace("_", "-") for arg in args if re.match(r"--[a-zA-Z]", arg)]
    parts = [
        f"unknown option {name}{_hint(name, known)}" for name in dict.fromkeys(names) if known and name not in known
    ]
    for head, below in _sections(framed):
        if head.startswith("Missing from"):
            parts.append(f"missing: {', '.join(map(_short_name, below))}")
        elif head.startswith("Unrecognized options:") and not parts:
            word = (below or [head.partition(": ")[2].split(", ")[0]])[0]
            unknown = f"unknown command {word!r}; {did_you_mean(word, commands)}"
            parts.append(unknown if commands else f"unexpected argument {word!r}")
        elif head.startswith("Expected one of"):
            parts.append(f"missing: one of {head.partition('{')[2].rstrip('}.')}")
        elif choice := re.match(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)", head):
            hint = did_you_mean(choice[1], re.findall(r"'(.*?)'", choice[3]))
            parts.append(f"unknown value {choice[1]!r} for {choice[2]}; {hint}")
        elif value := re.match(r"Missing value for argument '(.*?)'", head):
            if not parts:
                parts.append(f"{value[1]} needs a value")
        elif parsing := re.match(r"Error parsing (.*)", head):
            parts.append(_plainly(parsing[1]))
        elif not parts and not head.startswith(("For full", "Perhaps", "Arguments", "Available", "Argument ")):
            parts.append(head)
    return f"{'; '.join(parts) or 'the arguments cannot be read'} (see {prog} --help)"


def _hint(name: str, known: list[str]) -> str:
    """The nearest option: the same last part, its initials (lr: learning-rate), or a similar spelling."""
    prefix, _, last = name.lstrip("-").rpartition(".")
    for option in sorted(known, key=lambda option: option.lstrip("-").rpartition(".")[0] != prefix):
        tail = option.lstrip("-").rpartition(".")[2]
        if last in (tail, "".join(word[0] for word in tail.split("-") if word)):
            return f"; did you mean {option}?"
    found = nearest(name.lstrip("-"), [option.lstrip("-") for option in known])
    return f"; did you mean --{found}?" if found else ""


def _plainly(message: str) -> str:
    """Python's words for values that are not numbers, in plain English."""
    message = re.sub(r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not an integer", message)
    return re.sub(r"could not convert string to float: (.*)", r"\1 is not a number", message)


def _short_name(invocation: str) -> str:
    """--output of "-o PATH, --output PATH"; a positional argument as it is."""
    options = re.findall(r"--[\w.-]+", invocation)
    return options[0] if options else invocation


def _sections(framed: str) -> Iterator[tuple[str, list[str]]]:
    """The parts between rules: the text at the margin, and the names listed below it, without their help."""
    section: list[str] = []
    lines = framed.splitlines()
    if not any(map(_RULE.fullmatch, lines)):  # another layout
        return
    for line in [*lines[2:], "-----"]:  # after the title and its rule
        if not _RULE.fullmatch(line.rstrip()):
            section.append(line.rstrip())
            continue
        head = " ".join(line.strip() for line in section if re.match(r" {0,2}\S", line))
        if head:
            yield head, [line.strip() for line in section if re.match(r" {6}\S", line)]
        section = []


@dataclasses.dataclass
class _Entry:
    name: str
    is_command: bool
    lines: list[str]


def _entries(body: list[str]) -> Iterator[tuple[str, str]]:
    """Options with their texts, or subcommands with the first paragraphs of theirs."""
    entries: list[_Entry] = []
    for line in body:
        found = _ENTRY.fullmatch(line)
        if found is not None:
            entries.append(_Entry(found[1], "•" in line, [found[2]] if found[2] else []))
        elif entries:
            entries[-1].lines.append(line)
    for entry in entries:
        name, text = entry.name, " ".join(_paragraphs(entry.lines)[: 1 if entry.is_command else None])
        switch = re.fullmatch(r"((?:-\w, )?--[\w.-]+), --[\w.-]*no-[\w.-]+", name)
        if switch is not None and text.endswith("(default: False)"):
            name, text = switch[1], text.removesuffix("(default: False)").rstrip()
        if name != "(required)":  # of subcommands
            yield name, _UNSAID_DEFAULTS.sub("", text)


def entry(name: str, text: str, width: int, column: int) -> str:
    """A name, and its text from `column` on."""
    wrapped = wrap(text, width, " " * column)
    if len(name) + 4 > column or not text:
        return wrap(name, width, "  ", " " * column) + ("\n" + wrapped if text else "")
    return f"  {name:<{column - 2}}{wrapped[column:]}"


def _paragraphs(lines: Sequence[str]) -> list[str]:
    """Lines joined to paragraphs, which empty lines separate."""
    joined = "\n".join(line.strip() for line in lines)
    return [" ".join(part.split()) for part in re.split(r"\n\n+", joined) if part.strip()]


def wrap(text: str, width: int, indent: str = "", further: str | None = None) -> str:
    """Lines of at most `width`, indented; `further`: the indentation of all but the first."""
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    )
