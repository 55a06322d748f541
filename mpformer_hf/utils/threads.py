"""Reading and writing in threads, while the model works."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

THREADS = 2


def in_threads(work: Callable, items: Iterable) -> Iterator[tuple[Any, Future]]:
    """Each item and the future of `work(item)`, in order, as soon as `THREADS` later ones have begun."""
    waiting: deque[tuple[Any, Future]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > THREADS:
                yield waiting.popleft()
        yield from waiting
