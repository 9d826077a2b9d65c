"""Work in a thread of its own that never holds up a process that was told to stop."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


def in_background(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Run `work` in a daemon thread.

    The interpreter waits at its end for an executor's threads, but not for these.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def map_in_background(
    work: Callable[[T], R],
    items: Iterable[T],
    workers: int,
) -> Iterator[R]:
    """`work` of each item, in their order; so many are worked on at a time."""
    pending: deque[Future[R]] = deque()
    for item in items:
        if len(pending) == workers:
            yield pending.popleft().result()
        pending.append(in_background(work, item))
    while pending:
        yield pending.popleft().result()
