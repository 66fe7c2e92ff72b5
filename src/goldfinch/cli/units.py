"""Quantities as people read them."""


def size(count: int) -> str:
    """Bytes in binary units: 8.2 MiB."""
    unit = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count / 1024**unit:.{1 if unit else 0}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def plural(number: int, noun: str) -> str:
    """A number with its noun: 1 file, 2,000 files."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def count(number: int) -> str:
    """Three or four digits and a decimal prefix: 9.10 G."""
    unit = min((len(str(number)) - 1) // 3, 6)
    return f"{number / 1000**unit:.2f} {('', 'k', 'M', 'G', 'T', 'P', 'E')[unit]}"
