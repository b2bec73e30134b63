"""Means of state dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

State = Mapping[str, Tensor]


class StateMean:
    """The mean of state dicts, added one by one.

    Floating tensors are summed in float64 and come out in their own type. Others (counters, masks) are the first
    state's: half a batch of a counter means nothing.

    Example:
        >>> import torch
        >>> mean = StateMean()
        >>> mean.add({"w": torch.tensor([1.0]), "n": torch.tensor(3)})
        >>> mean.mean(also={"w": torch.tensor([2.0]), "n": torch.tensor(5)})
        {'w': tensor([1.5000]), 'n': tensor(3)}
    """

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}

    def add(self, state: State) -> None:
        """Add a state of the same names and shapes as the others."""
        self._first = self._first or dict(state)
        self._sums = self._summed(state)
        self.count += 1

    def mean(self, also: State | None = None) -> dict[str, Tensor]:
        """The mean of the states so far, and of ``also``."""
        sums, count = (self._sums, self.count) if also is None else (self._summed(also), self.count + 1)
        first = self._first or dict(also or {})
        return {name: (sums[name] / count).to(v.dtype) if name in sums else v.clone() for name, v in first.items()}

    def _summed(self, state: State) -> dict[str, Tensor]:
        wide = {name: value.double() for name, value in state.items() if value.is_floating_point()}
        return {name: value + self._sums[name] if name in self._sums else value for name, value in wide.items()}


def uniform_soup(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of all states; they are taken out of the sequence one at a time.

    Example:
        >>> import torch
        >>> uniform_soup([{"w": torch.zeros(1)}, {"w": torch.ones(1)}])
        {'w': tensor([0.5000])}
    """
    mean = StateMean()
    for state in states:
        mean.add(state)
    return mean.mean()


def greedy_soup(states: Sequence[State], score: Callable[[State, int], float]) -> tuple[dict[str, Tensor], list[int]]:
    """The mean of those states whose addition does not make it worse, the best ones tried first.

    Args:
        states: At least one; they are taken out of the sequence one at a time, twice.
        score: How good a state is on held-out data, larger is better; called with the state and the number of states
            that it is the mean of. Not on test data: what is chosen by a number is not measured by it.

    Returns:
        The mean, and the positions of the states that are in it, in the order in which they came.

    Source: Wortsman et al., 2022, "Model soups", recipe 1.

    Example:
        >>> import torch
        >>> states = [{"w": torch.tensor([w])} for w in (8.0, 1.0, -2.0)]
        >>> greedy_soup(states, lambda state, count: -abs(state["w"].item()))
        ({'w': tensor([-0.5000])}, [1, 2])
    """
    scores = [score(state, 1) for state in states]
    order = sorted(range(len(states)), key=lambda i: scores[i], reverse=True)
    soup, chosen, best = StateMean(), order[:1], scores[order[0]]
    soup.add(states[order[0]])
    for i in order[1:]:
        state = states[i]
        value = score(soup.mean(also=state), soup.count + 1)
        if value >= best:
            best = value
            soup.add(state)
            chosen.append(i)
    return soup.mean(), chosen
