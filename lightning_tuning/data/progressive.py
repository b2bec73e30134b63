"""Image sizes that grow in the course of a run."""

from __future__ import annotations

import math
import re

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.timing.durations import check_duration, duration_of
from lightning_tuning.timing.moments import Clock

_FORM = re.compile(r"\s*(\d+)\s*->\s*(\d+)\s+over\s+(.+?)(?:\s+by\s+(\d+))?\s*")
_SMALLEST = 4
# So that 3 of 10 epochs are 30 %, though 0.3 * 10 is not 3 in floating point.
_TOLERANCE = 1e-9


class ImageSizeSchedule:
    """Image sizes from a first to a last one, in equal steps that take equal parts of a length of time.

    ``128 -> 224 over 60%`` has the sizes 128, 160 and 192, each for a fifth of the run, and 224 from 60 % on. A change
    takes effect at the beginning of an epoch: an epoch has the size that its first optimizer step is due. So a resumed
    run needs no state, and all batches of an epoch have one size.

    Args:
        text: First and last size in pixels, the time in which the last is reached, and the size of a step if it is not
            32: ``128 -> 224 over 60%``, ``16 -> 32 over 20ep by 8``. The first may be the larger one.
        argument: What it is called in messages.

    Attributes:
        sizes: All sizes, in order.
        length: The time in which the last is reached.

    Raises:
        InvalidValueError: It describes no schedule.

    Source:
        Smaller images first: Howard, 2018 ("progressive resizing", fast.ai's entry to DAWNBench); equal stages: Tan &
        Le, 2021, "EfficientNetV2", algorithm 1.

    Example:
        >>> schedule = ImageSizeSchedule("128 -> 224 over 60%")
        >>> [schedule.size(done / 10) for done in range(11)]
        [128, 128, 128, 128, 160, 160, 160, 192, 192, 192, 224]
        >>> from lightning_tuning.timing.moments import PlainClock
        >>> clock = PlainClock(total_steps=1000)
        >>> [schedule.size_of_epoch(100 * epoch, clock) for epoch in range(10)]
        [128, 128, 160, 160, 192, 192, 224, 224, 224, 224]
    """

    def __init__(self, text: str, argument: str = "image_size") -> None:
        found = _FORM.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidValueError(
                f"{argument} is {text!r}; write a first and a last size in pixels and the time in which the last is "
                "reached, as in '128 -> 224 over 60%', and the size of a step if it is not 32, as in "
                "'16 -> 32 over 20ep by 8'."
            )
        first, last, step = int(found[1]), int(found[2]), int(found[4] or 32)
        self.length = duration_of(check_duration(f"the time in {argument}", found[3]))
        if min(first, last) < _SMALLEST or first == last:
            raise InvalidValueError(
                f"{argument} is {text!r}; both sizes must be at least {_SMALLEST}, and they must differ."
            )
        if step == 0 or (last - first) % step:
            raise InvalidValueError(
                f"{argument} is {text!r}, but steps of {step} pixels do not lead from {first} to {last}. Write the "
                f"size of a step, as in '{first} -> {last} over {found[3]} by {math.gcd(abs(last - first), 32)}'."
            )
        direction = step if last > first else -step
        self.sizes = (*range(first, last, direction), last)

    def size(self, progress: float) -> int:
        """The size that is due when a share of the length is done.

        Args:
            progress: The share, from 0 on; from 1 on the size is the last.
        """
        steps = len(self.sizes) - 1
        return self.sizes[min(math.floor(progress * steps + _TOLERANCE), steps)]

    def size_of_epoch(self, first_step: float, clock: Clock) -> int:
        """The size that all images of an epoch have.

        Args:
            first_step: Optimizer steps done before the epoch.
            clock: Knows the run's length.
        """
        return self.size(first_step / clock.at(self.length))
