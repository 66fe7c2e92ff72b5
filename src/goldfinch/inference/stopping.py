"""Where writing ends: strings that stop it."""

from collections.abc import Iterator, Sequence


def stop_before(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Pass pieces on until one of the stop strings, also when it is spread over several pieces.

    What could be the beginning of a stop string is held back until it is decided. Empty pieces are left out.
    """
    stop = [string for string in stop if string]
    held = ""
    for piece in pieces:
        held += piece
        found = [position for string in stop if (position := held.find(string)) >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        beginnings = (
            length
            for string in stop
            for length in range(min(len(string) - 1, len(held)), 0, -1)
            if held.endswith(string[:length])
        )
        keep = max(beginnings, default=0)
        ready, held = held[: len(held) - keep], held[len(held) - keep :]
        if ready:
            yield ready
    if held:
        yield held
