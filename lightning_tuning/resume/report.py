"""The certificate: for each moment whether the resumed run was equal, and the first thing that differed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """The first thing in which a run differs from the uninterrupted one.

    Attributes:
        key: What it is, ``"group: name"``, e.g. ``"weights: net.0.weight"``.
        place: When it was seen, e.g. ``"before batch 2 of epoch 1 (step 6)"``; epochs and batches count from 0.
        whole: Its value in the uninterrupted run, in words.
        resumed: Its value in the resumed run.
        largest: The largest difference of two elements; None where there are no numbers to compare.
        cause: What usually causes it.
        rank: The process.
    """

    key: str
    place: str
    whole: str
    resumed: str
    largest: float | None
    cause: str
    rank: int = 0

    def __str__(self) -> str:
        values = f"{self.whole} in the uninterrupted run, {self.resumed} in this one"
        size = values if self.largest is None else f"largest difference {self.largest:.3g}"
        rank = f" on rank {self.rank}" if self.rank else ""
        return f"{self.key}, {self.place}{rank}: {size}."


@dataclass(frozen=True)
class MomentResult:
    """What became of a run that was stopped at one moment.

    Attributes:
        moment: The moment.
        step: The optimizer step that the resumed run began with; None if it did not begin.
        difference: The first difference; None if there is none.
        problem: Why there is no resumed run to compare, e.g. that nothing was saved.
        unreached: Why this configuration has no such moment. It is then no failure.
    """

    moment: str
    step: int | None = None
    difference: Difference | None = None
    problem: str | None = None
    unreached: str | None = None

    @property
    def ok(self) -> bool:
        return self.difference is None and self.problem is None

    def __str__(self) -> str:
        if self.unreached:
            return f"not reached: {self.unreached}"
        if self.problem:
            return f"failed: {self.problem}"
        return "equal" if self.difference is None else f"differs: {self.difference}"


@dataclass(frozen=True)
class ResumeReport:
    """The results of all moments; as text, the certificate.

    Attributes:
        results: One for each moment.
        steps: Optimizer steps of the uninterrupted run.
        ranks: Its processes.

    Example:
        >>> print(ResumeReport((MomentResult("mid-epoch", 6), MomentResult("epoch end", 8)), steps=12))
        moment     resumed at  result
        mid-epoch  step 6      equal
        epoch end  step 8      equal
        Every resumed run equals the uninterrupted one of 12 steps bit for bit.
    """

    results: tuple[MomentResult, ...]
    steps: int
    ranks: int = 1

    @property
    def ok(self) -> bool:
        """Whether no run differed, and at least one was compared."""
        return all(result.ok for result in self.results) and any(not result.unreached for result in self.results)

    def __str__(self) -> str:
        width = max(len("moment"), *(len(result.moment) for result in self.results)) + 2
        lines = [f"{'moment':<{width}}{'resumed at':<12}result"]
        for result in self.results:
            step = "-" if result.step is None else f"step {result.step}"
            lines.append(f"{result.moment:<{width}}{step:<12}{result}")
        causes = dict.fromkeys(result.difference.cause for result in self.results if result.difference)
        lines += [f"Usual cause: {cause}" for cause in causes]
        if self.ok:
            ranks = f" on {self.ranks} processes" if self.ranks > 1 else ""
            lines.append(f"Every resumed run equals the uninterrupted one of {self.steps} steps{ranks} bit for bit.")
        elif all(result.unreached for result in self.results):
            lines.append("Nothing was compared.")
        return "\n".join(lines)
