"""The first difference between what two runs noted."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .causes import cause_of
from .report import Difference
from .state import HINT
from .watch import EPOCH

START = "start"
"""The moment of a run that was not resumed."""
_MISSING = "nothing"


def first_difference(whole: Mapping[str, Any], run: Mapping[str, Any], rank: int, moment: str) -> Difference | None:
    """What differs first: in the order of time, and at one time in the order of what causes what.

    Args:
        whole: What the uninterrupted run noted.
        run: What the other one did.
        rank: The process that both are of.
        moment: Where the other one was stopped.
    """
    before = {(epoch, batch): (step, state) for epoch, batch, step, state in whole["states"]}
    hints = _hints(before, run)
    facts = {**run["facts"], "moment": moment}
    for number, (epoch, batch, step, state) in enumerate(run["states"]):
        place = f"before batch {batch} of epoch {epoch} (step {step})" if batch >= 0 else "at the end of the run"
        if (epoch, batch) not in before:
            return Difference(
                "progress", place, "no such batch", "one batch more", None, cause_of("progress", True, facts, hints)
            )
        for key in _keys(before[epoch, batch][1], state, skip_buffers=rank > 0 and number == 0):
            ours, theirs = before[epoch, batch][1].get(key, _MISSING), state.get(key, _MISSING)
            if not same(ours, theirs):
                cause = cause_of(key.partition(":")[0], number == 0, facts, hints)
                return Difference(key, place, *_words(ours, theirs), largest(ours, theirs), cause, rank)
    if moment == START:
        return None  # what is logged at the epoch's end comes too early there
    return _first_logged(whole["events"], run, facts, hints, rank)


def same(a: Any, b: Any) -> bool:
    """Equality bit for bit; NaN equals NaN, and 1 is not 1.0."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return type(a) is type(b) and bool(a == b)


def largest(a: Any, b: Any) -> float | None:
    """The largest difference of two elements; None if they cannot be subtracted."""
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
        return float((a.double() - b.double()).abs().nan_to_num(nan=math.inf).max()) if not a.is_complex() else None
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return abs(a - b) if numbers else None


def _keys(whole: Mapping[str, Any], state: Mapping[str, Any], skip_buffers: bool) -> Iterable[str]:
    # DDP hands rank 0's buffers to all ranks in each forward pass: what another rank starts with does not matter.
    skipped = (f"{HINT}:", "buffers:") if skip_buffers else (f"{HINT}:",)
    return (key for key in dict.fromkeys([*whole, *state]) if not key.startswith(skipped))


def _words(ours: Any, theirs: Any) -> tuple[str, str]:
    def word(value: Any) -> str:
        return f"a tensor {list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else str(value)

    return word(ours), word(theirs)


def _hints(before: Mapping[tuple[int, int], tuple[int, dict[str, Any]]], run: Mapping[str, Any]) -> list[str]:
    """What no checkpoint holds and the resumed run did not have again."""
    for epoch, batch, _, state in run["states"]:
        if (epoch, batch) in before:
            whole = before[epoch, batch][1]
            keys = [key for key in dict.fromkeys([*whole, *state]) if key.startswith(HINT)]
            pairs = [(key, whole.get(key), state.get(key)) for key in keys]
            return [_hint(*pair) for pair in pairs if not same(pair[1] or None, pair[2] or None)]
    return []


def _hint(key: str, whole: Any, resumed: Any) -> str:
    values = (_MISSING if value is None else value for value in (whole, resumed))
    return "{} ({}; resumed: {})".format(key.removeprefix(f"{HINT}: "), *values)


def _first_logged(
    whole: list[tuple[int, dict[str, float]]],
    run: Mapping[str, Any],
    facts: Mapping[str, Any],
    hints: list[str],
    rank: int,
) -> Difference | None:
    """The first logged value that the uninterrupted run did not log, and then the first that is missing."""
    logged: dict[tuple[int, str], list[float]] = defaultdict(list)
    for step, values in whole:
        for name, value in values.items():
            logged[step, name].append(value)
    seen = set()
    for step, values in run["events"]:
        for name, value in values.items():
            seen.add((step, name))
            if facts["moment"] == "max_steps" and values.get("epoch") == EPOCH:
                continue  # the run ended within this epoch, so its means have two parts
            ours = logged.get((step, name), [])
            if not any(same(value, other) for other in ours):
                known = ours[-1] if ours else _MISSING
                cause = cause_of("logged", False, facts, hints)
                place = f"logged at step {step}"
                return Difference(f"logged: {name}", place, str(known), str(value), largest(known, value), cause, rank)
    start = min((step for step, _ in seen), default=None)
    for step, name in logged:
        if start is not None and step > start and (step, name) not in seen:
            cause = cause_of("logged", False, facts, hints)
            known = str(logged[step, name][-1])
            return Difference(f"logged: {name}", f"logged at step {step}", known, _MISSING, None, cause, rank)
    return None
