"""Our encoders next to the library `tokenizers` with the same tokenizer.json. `python benchmarks/tokenization.py`

Texts without spaces are among them: a time that grew faster than their length would show. No time is printed
before the ids agree.
"""

import random
from functools import partial

from common import arguments, plot, report, spread, versions

from goldfinch.benchmark.timing import interleave, seconds
from goldfinch.data.moby_dick import moby_dick_chapters
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer, WorldTokenizer

BPE_VOCABULARY = 8192


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--bytes", type=int, default=1_000_000, help="of each text, in UTF-8")
    parser.add_argument("--tokenizers", nargs="+", default=["world", "bytes", "bpe"], help="world, bytes, bpe")
    options = parser.parse_args()

    rows, lines = [], dict[str, dict[str, list[float]]]()
    for tokenizer in map(make_tokenizer, options.tokenizers):
        library = tokenizer.to_backend()
        for kind, text in texts(options.bytes).items():
            encoded = tokenizer.encode(text)
            if library.encode(text).ids != encoded:
                raise RuntimeError(f"{tokenizer.name}: the ids of {kind} differ; no speed is shown")
            cases = {"library": partial(library.encode, text), "ours": partial(tokenizer.encode, text)}
            taken = interleave({name: partial(seconds, case) for name, case in cases.items()}, options.repeats)
            library_taken, ours = taken["library"], taken["ours"]
            rows.append(
                [
                    tokenizer.name,
                    kind,
                    len(encoded),
                    spread(library_taken.seconds),
                    spread(ours.seconds),
                    ours.times_faster(library_taken),
                ]
            )
            for name, samples in taken.items():
                lines.setdefault(f"{tokenizer.name}, {name}", {})[kind] = samples.seconds
    columns = ["tokenizer", "text", "tokens", "library, s", "ours, s", "times faster"]
    title = f"Encoding {options.bytes:,} bytes, seconds"
    report(title, columns, rows, options.json, repeats=options.repeats, **versions(["tokenizers", "pyrwkv-tokenizer"]))
    if options.png is not None:
        plot(options.png, title, ("text", "seconds"), lines, tick=str)


def make_tokenizer(name: str) -> Tokenizer:
    """World, bytes, or byte pairs learned from Moby-Dick."""
    match name:
        case "world":
            return WorldTokenizer()
        case "bytes":
            return ByteTokenizer()
        case _:
            return BpeTokenizer.train(moby_dick_chapters(), BPE_VOCABULARY)


def texts(size: int) -> dict[str, str]:
    """Kind of text -> `size` bytes of it, or a few less."""
    random_ = random.Random(0)
    units = {
        "Moby-Dick": "\n\n".join(moby_dick_chapters()),
        "random Han": "".join(map(chr, random_.choices(range(0x4E00, 0xA000), k=size // 3))),
        "random letters": "".join(random_.choices("abcdefghijklmnopqrstuvwxyz", k=size)),
        "one letter": "a",
        "spaces": " ",
        "one emoji": "😀",
    }
    return {kind: cut(unit, size) for kind, unit in units.items()}


def cut(unit: str, size: int) -> str:
    """A text repeated to `size` bytes, without the part of a character at the end."""
    return (unit * -(-size // len(unit.encode()))).encode()[:size].decode(errors="ignore")


if __name__ == "__main__":
    main()
