"""A distribution, drawn with characters."""

from __future__ import annotations

from collections.abc import Mapping

WIDTH = 40
EIGHTHS = " ▏▎▍▌▋▊▉"


def bars(distribution: Mapping[str, float]) -> str:
    """One line for each option, in the given order: name, bar, per cent.

    Probabilities in [0, 1]; a bar of `WIDTH` characters is 1, resolved to an eighth of one.
    """
    longest = max(map(len, distribution), default=0)
    lines = []
    for option, probability in distribution.items():
        full, part = divmod(round(probability * WIDTH * 8), 8)
        bar = ("█" * full + EIGHTHS[part].strip()).ljust(WIDTH)
        lines.append(f"  {option:<{longest}}  {bar}  {probability:6.1%}")
    return "\n".join(lines)
