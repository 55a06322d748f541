"""Reading and writing in threads, while the model works."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

THREADS = 2


def in_threads(work: Callable, items: Iterable, threads: int = THREADS) -> Iterator[tuple[Any, Future]]:
    """Each item and the future of `work(item)`, in order, as soon as `threads` later ones were taken."""
    waiting: deque[tuple[Any, Future]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > threads:
                yield waiting.popleft()
        yield from waiting
