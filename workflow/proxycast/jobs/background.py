"""Work beside the main thread."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Outcome = TypeVar("Outcome")


def in_background(work: Callable[[], Outcome]) -> "Future[Outcome]":
    """What `work` returns or raises, from a thread of its own. A daemon: who is interrupted does not wait for it."""
    found: Future[Outcome] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    Thread(target=run, daemon=True).start()
    return found
