"""The settings that an endpoint's text may carry: ``replicate:ORG/MODEL?boot_timeout=600``.

Each setting has this one place. The token and the base URL come from the environment (see
`account`), since an endpoint's text stands in programs and logs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final


@dataclass(frozen=True)
class Patience:
    """Seconds that a prediction may wait for a cold model (`boot_timeout`), and that a running one
    may stay silent (`idle_timeout`)."""

    boot_timeout: float = 1800.0
    idle_timeout: float = 600.0


@dataclass(frozen=True)
class Savings:
    """What makes predictions fewer, shorter and faster. A query's result is the same without, so
    each can be switched off (``?memory=off``) to find out what it does.

    coalesce: ops of several bursts, loops and clients share a prediction. memory: a score or a
    greedy continuation that is known is not asked for again. join: an op that equals one in flight,
    or goes on from where one has got to, shares its answer. shape: streams are as long as LMQL can
    use, and end as soon as it no longer does. early: LMQL goes on with a stream's first token
    instead of its fourth. ahead: what LMQL's beams will need soon is asked for beforehand. wait: a
    short answer comes with the create's own response. compact: masks are sent as named sets.
    """

    coalesce: bool = True
    memory: bool = True
    join: bool = True
    shape: bool = True
    early: bool = True
    ahead: bool = True
    wait: bool = True
    compact: bool = True


KNOWN: Final = tuple(field.name for kind in (Patience, Savings) for field in fields(kind))
_SWITCH: Final = {"on": True, "off": False}


def read_settings(given: Mapping[str, str]) -> tuple[Patience, Savings]:
    """The settings that `given` names; the others keep their defaults. Raises ValueError that says
    what is wrong."""
    unknown = [name for name in given if name not in KNOWN]
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r}; known are {', '.join(KNOWN)}")
    return (
        Patience(**_read(Patience, given, _seconds)),
        Savings(**_read(Savings, given, _switch)),
    )


def _read(kind: type[Any], given: Mapping[str, str], read: Any) -> dict[str, Any]:
    return {
        field.name: read(field.name, given[field.name])
        for field in fields(kind)
        if field.name in given
    }


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, not {value!r}")
    return seconds


def _switch(name: str, value: str) -> bool:
    if value not in _SWITCH:
        raise ValueError(f"{name} must be on or off, not {value!r}")
    return _SWITCH[value]
