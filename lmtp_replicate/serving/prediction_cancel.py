"""How a running prediction hears that it was cancelled.

Our runner is a coroutine that returns a generator (see `building/templates/run.py` for why). Once
it has returned, coglet 0.23.1 knows no way to interrupt the generator: it would run on to its end.
But coglet still calls `cancel()` on the coroutine's `concurrent.futures.Future`, in vain, because
that future is done, and its result is the very generator we returned. So this module listens
there: `Future.cancel` of a finished future whose result is a generator that is being watched
ends that one prediction. Everything else about `Future.cancel` stays as it is.

tests/serving/test_coglet.py shows it on the real runtime and fails when that changes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from types import GeneratorType
from typing import Any
from weakref import WeakKeyDictionary

_watched: WeakKeyDictionary[Generator[str, None, None], Callable[[], None]] = WeakKeyDictionary()
_install_lock = threading.Lock()


def watch(generator: Generator[str, None, None], on_cancel: Callable[[], None]) -> None:
    """Call `on_cancel` when the prediction that returned `generator` is cancelled, on the thread
    that cancels it. It must not block."""
    _install()
    _watched[generator] = on_cancel


def _install() -> None:
    """Put the hook into `Future.cancel`, once in a process."""
    with _install_lock:
        if hasattr(Future.cancel, "__wrapped__"):
            return
        original = Future.cancel

        @functools.wraps(original)
        def cancel(future: Future[Any]) -> bool:
            cancelled = original(future)
            if not cancelled:
                _tell(future)
            return cancelled

        Future.cancel = cancel  # type: ignore[method-assign, assignment]


def _tell(future: Future[Any]) -> None:
    if not future.done() or future.exception() is not None:
        return
    result = future.result()
    if isinstance(result, GeneratorType) and (on_cancel := _watched.get(result)):
        on_cancel()
