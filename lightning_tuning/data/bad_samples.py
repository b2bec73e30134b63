"""Samples that cannot be used: the error that names one, and the count of them over all worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal

import torch

from lightning_tuning.errors import InvalidValueError, check_choice, check_range

NAMED = 5
"""How many bad samples the message names that ends a run."""


class BadSampleError(InvalidValueError):
    """A file holds no usable sample.

    A ``DataLoader`` makes an error of a worker process anew from one text, the worker's traceback. Then the message is
    the last line of it, and ``path`` and ``remedy`` are empty.

    Args:
        path: The file.
        reason: What is wrong, as half a sentence that begins with "it" or "its".
        remedy: What to do, as a sentence.

    Example:
        >>> str(BadSampleError("cats/7.png", "it is empty", "Copy it again."))
        'cats/7.png: it is empty. Copy it again.'
    """

    def __init__(self, path: str | os.PathLike[str], reason: str = "", remedy: str = "") -> None:
        if not reason:
            reason, path = str(path).strip().rpartition("BadSampleError: ")[2], ""
        super().__init__(f"{os.fspath(path)}: {reason}. {remedy}" if path else reason)
        self.path = os.fspath(path)
        self.reason = reason
        self.remedy = remedy


class BadSamples:
    """Counts the bad samples of a dataset and decides whether to go on without them.

    The flags lie in shared memory: worker processes, forked or spawned, write into the same ones, and a sample that is
    bad in each epoch counts once. Each rank counts its own samples.

    Args:
        num_samples: Length of the dataset.
        load: Loads the sample of an index and raises :class:`BadSampleError` if it is bad. It is called again for the
            reasons of samples that another process found bad.
        policy: ``raise`` ends the run at the first bad sample; ``skip`` counts it, and the caller leaves it out.
        max_share: The share of bad samples, 0 to 1, above which ``skip`` ends the run too.

    Raises:
        InvalidValueError: An argument is out of range.

    Example:
        >>> def load(index):
        ...     raise BadSampleError(f"{index}.png", "it is empty", "Copy it again.")
        >>> bad = BadSamples(200, load, policy="skip")
        >>> bad.check(7, BadSampleError("7.png", "it is empty", "Copy it again."))
        >>> print(bad.report())
        1 of 200 samples is bad.
        7: 7.png: it is empty.
    """

    def __init__(
        self,
        num_samples: int,
        load: Callable[[int], object],
        policy: Literal["raise", "skip"] = "raise",
        max_share: float = 0.01,
    ) -> None:
        check_choice("on_bad_sample", policy, ("raise", "skip"))
        check_range("max_share", max_share, 0, 1)
        self.load = load
        self.policy = policy
        self.max_share = max_share
        self._flags = torch.zeros(num_samples, dtype=torch.uint8).share_memory_()

    @property
    def count(self) -> int:
        """How many samples were found bad so far, by all processes."""
        return int(self._flags.sum())

    def check(self, index: int, error: BadSampleError) -> None:
        """Raise ``error``, or note that the sample ``index`` is bad.

        Raises:
            BadSampleError: ``error`` itself, if the policy is ``raise``.
            InvalidValueError: More than ``max_share`` of the samples are bad.
        """
        if self.policy == "raise":
            raise error
        self._flags[index] = 1
        if self.count > self.max_share * len(self._flags):
            first = "; ".join(f"{path}: {reason}" for _, path, reason in islice(self.rows(), NAMED))
            rest = f"; and {self.count - NAMED} more" if self.count > NAMED else ""
            raise InvalidValueError(
                f"{self._summary()}, more than the {self.max_share:.2%} that may be skipped: {first}{rest}. "
                "Mend or remove the files."
            ) from error

    def rows(self) -> Iterator[tuple[int, str, str]]:
        """Index, file and reason of each bad sample, by index. Each is loaded again."""
        return map(self._row, self._flags.nonzero().flatten().tolist())

    def _row(self, index: int) -> tuple[int, str, str]:
        try:
            self.load(index)
        except BadSampleError as error:
            return index, error.path, error.reason
        return index, "", "it was read without an error when it was loaded again"

    def report(self) -> str:
        """How many samples are bad, and a line for each."""
        lines = (
            f"{index}: {path}: {reason}." if path else f"{index}: {reason}." for index, path, reason in self.rows()
        )
        return "\n".join([f"{self._summary()}.", *lines])

    def _summary(self) -> str:
        return f"{self.count} of {len(self._flags)} samples {'is' if self.count == 1 else 'are'} bad"
