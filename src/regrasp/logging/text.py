"""Numbers and durations in few characters, and texts of others, for the console and the progress bar."""

from __future__ import annotations

import math

_CONTROLS = frozenset((*range(0x20), *range(0x7F, 0xA0)))


def printable(text: str) -> str:
    """A text whose control characters, which would command the terminal, are spelled out; lines stay lines."""
    return "".join(char if char in "\n\t" or ord(char) not in _CONTROLS else repr(char)[1:-1] for char in text)


def counted(number: int, noun: str, plural_ending: str = "s") -> str:
    """`1 update`, `2 updates`."""
    return f"{number} {noun}{'' if number == 1 else plural_ending}"


def duration(seconds: float) -> str:
    """At most 6 characters: `4:07` (minutes), `2h05m` or `12d03h`; `-` where unknown."""
    if not math.isfinite(seconds):
        return "-"
    whole = max(0, round(seconds))
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    hours = whole // 3600
    if hours < 100:
        return f"{hours}h{whole % 3600 // 60:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h"


def number(value: float, width: int, decimals: int = 4) -> str:
    """`value` with as many digits (at most `decimals` after the point) as fit into `width` characters, at least 5.

    What fits in no notation is `~0` or `huge`.
    """
    if not math.isfinite(value):
        return str(value)
    fixed = [f"{value:.{places}f}" for places in range(decimals, -1, -1)]
    powers = [f"{value:.{places}e}".split("e") for places in (2, 1, 0)]
    scientific = [f"{mantissa}e{int(exponent)}" for mantissa, exponent in powers]
    texts = scientific if 0 < abs(value) < 1e-3 else fixed + scientific
    return next((text for text in texts if len(text) <= width), "~0" if abs(value) < 1 else "huge")


def byte_size(num_bytes: int) -> str:
    """A size with two decimals: GiB, or MiB below a tenth of one."""
    gib = num_bytes / 2**30
    return f"{gib:.2f} GiB" if gib >= 0.1 else f"{num_bytes / 2**20:.2f} MiB"
