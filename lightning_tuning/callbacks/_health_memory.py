"""What a watching callback remembers of its findings, so that it tells each of them once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


class Memory:
    """Since when findings hold, and how bad they were when they were told.

    Args:
        window: For how many looks in a row a finding has to hold.

    Example:
        >>> memory = Memory(window=2)
        >>> memory.lasting("saturated", ["a"], step=0), memory.lasting("saturated", ["a", "b"], step=50)
        ({}, {'a': 0})
        >>> memory.is_news("saturated/a", 2.0), memory.is_news("saturated/a", 2.9), memory.is_news("saturated/a", 3.0)
        (True, False, True)
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.held: dict[str, list[int]] = {}
        """By finding and layer: the step since which it holds, and for how many looks."""
        self.told: dict[str, float] = {}
        """By finding: how bad it was when it was told."""

    def lasting(self, finding: str, names: Iterable[str], step: int, window: int | None = None) -> dict[str, int]:
        """Since which step it holds for those layers for which it has held for the window.

        Args:
            finding: What was found.
            names: The layers for which it holds in this look. For all others it is over.
            step: Of this look.
            window: Another window than the usual one.
        """
        keys = {f"{finding}/{name}": name for name in names}
        for key in [key for key in self.held if key.startswith(f"{finding}/") and key not in keys]:
            del self.held[key]
        for key in keys:
            self.held.setdefault(key, [step, 0])[1] += 1
        needed = self.window if window is None else window
        return {name: self.held[key][0] for key, name in keys.items() if self.held[key][1] >= needed}

    def is_news(self, key: str, badness: float) -> bool:
        """Whether this was not told yet, or was 1 or more less bad then; from now on it is told. What was told as
        infinitely bad cannot become worse."""
        if key in self.told and (self.told[key] == math.inf or not badness >= self.told[key] + 1):
            return False
        self.told[key] = badness
        return True

    def state(self) -> dict[str, Any]:
        return {"held": {key: list(value) for key, value in self.held.items()}, "told": dict(self.told)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.held = {key: list(value) for key, value in state["held"].items()}
        self.told = dict(state["told"])
