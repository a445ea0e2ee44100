"""Writing a cache in a thread of its own, while the device makes the next window."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from angelshare.errors import AngelshareError

Row = TypeVar("Row")
Window = Callable[[], Iterable[Row]]
"""Some rows in table order, once the thread asks for them; it waits for the device, not the other
way round."""


def write_behind(write: Callable[[Iterable[Row]], None], windows: Iterable[Window[Row]]) -> None:
    """``write`` the windows' rows while ``windows`` makes the next.

    At most two windows wait. If either side fails, nothing is published; the windows that were
    handed over until then are asked for all the same.
    """
    waiting: queue.Queue[Window[Row] | None] = queue.Queue(maxsize=1)
    abandoned = threading.Event()

    def arriving() -> Iterator[Row]:
        while (window := waiting.get()) is not None:
            yield from window()
        if abandoned.is_set():
            raise AngelshareError("the capture was abandoned")

    with ThreadPoolExecutor(1, thread_name_prefix="write-cache") as pool:
        writing = pool.submit(write, arriving())
        try:
            for window in windows:
                _put(waiting, window, writing)
                if writing.done():
                    break
        except BaseException:
            # What the writer says of it then is of no interest, whatever it is.
            abandoned.set()
            raise
        finally:
            _put(waiting, None, writing)
        writing.result()


def _put(
    waiting: queue.Queue[Window[Row] | None], item: Window[Row] | None, writing: Future[None]
) -> None:
    """Hand over ``item``, unless the writer has failed."""
    while not writing.done():
        with suppress(queue.Full):
            waiting.put(item, timeout=0.1)
            return
