"""Long trials of what must not fail: CI's tests run a little of each, ``scripts/stress.py`` all.

A part is a function of ``going_on``, which it asks with the number of trials done, and returns
its figures. What goes wrong is an ``AssertionError`` that says what to repeat.
"""

from __future__ import annotations

from collections.abc import Callable

GoingOn = Callable[[int], bool]
"""``going_on(done)``: whether to make another trial."""

Figures = dict[str, int | float]


def up_to(count: int) -> GoingOn:
    """Go on until ``count`` trials are done."""
    return lambda done: done < count
