"""Steady load from several threads, and a count of what came back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Self

from sidecar.demo.processes import wait_until

WITHIN_S = 30.0


class Load:
    """Calls `send` over and over from each of some threads until the block ends; counts its results.

    `send` gets the thread's number and returns what is counted; an exception is counted under its type's name.
    """

    def __init__(self, send: Callable[[int], object], threads: int = 4) -> None:
        self.results: Counter[object] = Counter()
        self._send = send
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                result = self._send(number)
            except OSError as error:
                result = type(error).__name__
            with self._lock:
                self.results[result] += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, result: object, more: int) -> None:
        """Until that result has come so many times more."""
        target = self.results[result] + more
        wait_until(lambda: self.results[result] >= target, f"{more} more of {result}; so far {self.results}", WITHIN_S)

    def wait_more(self, more: int) -> None:
        """Until so many more requests have been answered, whatever the answer."""
        target = self._total() + more
        wait_until(lambda: self._total() >= target, f"{more} more; so far {self.results}", WITHIN_S)

    def forget(self) -> None:
        """Count from here on."""
        with self._lock:
            self.results.clear()

    def _total(self) -> int:
        with self._lock:
            return self.results.total()
