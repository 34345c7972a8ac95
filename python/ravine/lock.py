"""The lock of a step: one at a time, and free again whenever Ctrl-C comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ravine import _core

__all__ = ["StepLock"]

T = TypeVar("T")


class StepLock:
    """What one thread holds while it is inside a step of an optimizer.

    Handlers of signals run between Python's own instructions, never inside a call into C. Here one such call takes the
    lock and writes down that it did, inside the ``try``; so a KeyboardInterrupt finds the lock free, or noted. It must
    not be a context manager: an interrupt may come before the first line of a Python ``__exit__``.

    >>> from ravine.lock import StepLock
    >>> StepLock().hold(lambda: "done")
    'done'
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _core.Turn()  # which a child of fork finds free

    def hold(self, work: Callable[[], T]) -> T:
        """Do the work with the lock held, and return what it returns.

        Args:
            work: what nobody else may do meanwhile.

        Raises:
            RuntimeError: another thread holds it. Nothing was done.
        """
        held: list[bool] = []
        try:
            held.extend(map(self._lock.acquire, (False,)))
            if held != [True]:
                raise RuntimeError("step: another thread is inside a step of this optimizer; give each thread its own")
            result = work()  # not returned at once: this assignment is still inside the try
            return result  # noqa: RET504
        finally:
            if held == [True]:
                self._lock.release()
