"""What the looks at a network say: which finding passes its threshold, since when, and what helps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ._health_memory import Memory

_LARGEST_SLOPE = {"Sigmoid": "1/4", "Tanh": "1", "Softsign": "1", "Hardsigmoid": "1/6", "Hardtanh": "1"}
_FLAT_BELOW = ("ELU", "CELU", "SELU")
_CALM_STEPS = "lower the learning rate, let it rise by warmup_steps, or clip the gradient"


@dataclass(frozen=True)
class Limits:
    """The thresholds: the arguments of ``ActivationHealth``."""

    window: int
    max_dead: float
    max_saturated: float
    min_variation: float
    max_ratio: float
    max_growth: float


@dataclass(frozen=True)
class Layer:
    """A layer at its place in forward order."""

    name: str
    kind: str
    is_activation: bool
    has_weights: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


@dataclass(frozen=True)
class Reading:
    """The numbers of one look."""

    step: int
    layers: Sequence[Layer]
    values: Mapping[str, float]
    """By ``<metric>/<layer>``; of the whole network ``gradient_norm`` and ``gradient_ratio``."""
    broken: Collection[str] = ()
    """The layers whose weights are not finite."""
    half: Collection[str] = ()
    """The layers whose outputs are of fp16."""

    def of(self, metric: str, layer: Layer) -> float:
        return self.values.get(f"{metric}/{layer.name}", math.nan)

    def size(self, layer: Layer) -> float:
        """Root mean square of what the layer returned."""
        return math.hypot(self.of("mean", layer), self.of("std", layer))

    def first_not_finite(self) -> Layer | None:
        known = (layer for layer in self.layers if f"std/{layer.name}" in self.values)
        return next((layer for layer in known if not math.isfinite(self.size(layer))), None)

    def hidden(self, only: Callable[[Layer], bool]) -> list[Layer]:
        """The layers between the first and the last one with weights."""
        weights = [i for i, layer in enumerate(self.layers) if layer.has_weights]
        return [layer for layer in self.layers[weights[0] : weights[-1]] if only(layer)] if weights else []

    def signal(self) -> list[Layer]:
        """The hidden layers that carry what the network computes: the activations; where they are functions, which
        hooks cannot see, the layers with weights."""
        activations = self.hidden(lambda layer: layer.is_activation and not layer.kind.endswith("Softmax"))
        return activations or self.hidden(lambda layer: layer.has_weights)


class Report:
    """Turns readings into sentences, each told once, and once more when it has become clearly worse.

    What is said of shares and of ratios over the depth has to hold for ``window`` looks in a row. What grows from look
    to look is told at once.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.memory = Memory(limits.window)
        self.steps: list[int] = []
        """Those of the last ``window`` looks."""
        self.first_step: int | None = None

    def state(self) -> dict[str, Any]:
        return {**self.memory.state(), "steps": list(self.steps), "first_step": self.first_step}

    def load(self, state: Mapping[str, Any]) -> None:
        self.memory.load(state)
        self.steps, self.first_step = list(state["steps"])[-self.limits.window :], state["first_step"]

    def not_finite(self, reading: Reading) -> list[str]:
        """The sentence about the first layer whose outputs are not finite, if there is one to tell of."""
        bad = reading.first_not_finite()
        if bad is None or not self.memory.is_news("not_finite", 0.0):
            return []
        text = f"The outputs of {bad} are not finite at step {reading.step}"
        if bad.name in reading.broken:
            return [f"{text}, for an earlier step made its weights so; {_CALM_STEPS} (trainer.gradient_clip_val)."]
        if bad is reading.layers[0]:
            return [f"{text}, though its weights are; look for NaN and infinite values in the inputs."]
        text = f"{text}, though its weights and the outputs before are"
        if bad.name in reading.half:
            return [
                f"{text}; what it computes overflows fp16: train in bf16-mixed, or put a norm layer in front of it."
            ]
        return [f"{text}; the network has diverged: {_CALM_STEPS} (trainer.gradient_clip_val)."]

    def examine(self, reading: Reading, earlier: Mapping[str, Sequence[float]]) -> list[str]:
        """The sentences about a look.

        Args:
            reading: The look.
            earlier: The values of the earlier looks by the names of ``reading.values``, oldest first; NaN for none.
        """
        if reading.first_not_finite() is not None:
            return self.not_finite(reading)  # what else is wrong follows from it
        self.steps = [*self.steps, reading.step][-self.limits.window :]
        if self.first_step is None:
            self.first_step = reading.step
        found = (
            self._dead(reading),
            self._saturated(reading),
            self._constant(reading),
            self._gradient_over_depth(reading),
            self._size_over_depth(reading),
            self._gradient_over_time(reading, earlier),
            self._size_over_time(reading, earlier),
        )
        return [sentence for sentence in found if sentence]

    def _dead(self, reading: Reading) -> str | None:
        shares = {x: reading.of("dead", x) for x in reading.layers}
        bad = [x for x in reading.layers if shares[x] > self.limits.max_dead]
        # A unit counts as dead after the window, so the finding is as old as the window when it comes.
        news = self._news("dead", bad, self.steps[0], lambda x: 4 * shares[x], window=1)
        if not news:
            return None
        worst = max(news, key=lambda x: shares[x])
        word = "zero" if worst.kind in ("ReLU", "ReLU6", "Hardswish") else "switched off"
        if news[worst] == self.first_step:
            help_ = "draw other weights (init_method: kaiming_normal), put a norm layer in front of it"
        else:
            help_ = "try a lower learning rate, warmup_steps or trainer.gradient_clip_val"
        return (
            f"{worst}: {shares[worst]:.0%} of the units have been {word} for every sample since step {news[worst]}"
            f"{_others(news, worst)}; {help_}, or take activation_name: leaky_relu, whose slope is nowhere zero."
        )

    def _saturated(self, reading: Reading) -> str | None:
        layers = reading.hidden(lambda x: not x.kind.endswith("Softmax"))
        shares = {x: reading.of("saturated", x) for x in layers}
        bad = [x for x in layers if shares[x] > self.limits.max_saturated]
        news = self._news("saturated", bad, reading.step, lambda x: 4 * shares[x])
        if not news:
            return None
        worst = max(news, key=lambda x: shares[x])
        if news[worst] == self.first_step:
            help_ = "draw smaller weights (init_method: xavier_normal)"
        else:
            help_ = "try a lower learning rate or trainer.gradient_clip_val, keep the weights small (max_norm_bound)"
        other = "leaky_relu" if worst.kind in _FLAT_BELOW else "relu"
        return (
            f"{worst}: {shares[worst]:.0%} of the outputs have been saturated, where the slope is next to zero, since "
            f"step {news[worst]}; its inputs have a standard deviation of {reading.of('pre_std', worst):.2g}"
            f"{_others(news, worst)}; {help_}, put a norm layer in front of it, or take activation_name: {other}."
        )

    def _constant(self, reading: Reading) -> str | None:
        layers = reading.signal()
        shares = {x: reading.of("variation", x) for x in reading.layers}
        # To the network's end: what a gate or an attention loses comes in again behind it.
        back = reversed([*layers, *[x for x in reading.layers if x.has_weights][-1:]])
        lost = list(takewhile(lambda x: shares[x] < self.limits.min_variation, back))
        bad = [x for x in layers if x in lost]
        news = self._news("constant", bad, reading.step, lambda x: -math.log10(shares[x] + 1e-30) / 2)
        if not news:
            return None
        first = next(iter(news))
        if first.kind in _LARGEST_SLOPE:
            help_ = "take activation_name: relu with init_method: kaiming_normal, or put a norm layer in front of each"
        else:
            help_ = "put norm layers in front of the activations, or draw the weights by init_method: lsuv"
        return (
            f"{first}: the outputs have hardly depended on the input since step {news[first]}, by {shares[first]:.2g} "
            f"of their size{_others(news, first)}; {help_}."
        )

    def _gradient_over_depth(self, reading: Reading) -> str | None:
        ratio = reading.values.get("gradient_ratio", math.nan)
        fades = self._ratio_news("vanishing", 1 / ratio if ratio else math.inf, reading.step)
        grows = self._ratio_news("exploding", ratio, reading.step)
        if fades is None and grows is None:
            return None
        profile = [x for x in reading.layers if math.isfinite(reading.of("gradient", x))]
        first, last = profile[0], profile[-1]
        numbers = " against ".join(f"{reading.of('gradient', x):.1e} in {x}" for x in (first, last))
        if grows is not None:
            return (
                f"The gradient has exploded towards the first layer since step {grows}: the RMS of the weight gradient "
                f"is {numbers}; normalize the inputs, draw the weights by init_method: lsuv, add norm layers, or clip "
                "(trainer.gradient_clip_val)."
            )
        text = (
            f"The gradient has vanished towards the first layer since step {fades}: the RMS of the weight gradient is "
            f"{numbers}"
        )
        between = reading.layers[reading.layers.index(first) : reading.layers.index(last)]
        squashing = [x.kind for x in between if x.kind in _LARGEST_SLOPE]
        if squashing:
            kind = statistics.mode(squashing)
            return (
                f"{text}; each of the {squashing.count(kind)} {kind} layers between them multiplies it by a slope of "
                f"at most {_LARGEST_SLOPE[kind]}: take activation_name: relu with init_method: kaiming_normal, or add "
                "norm layers or residual connections."
            )
        if any(reading.of("dead", x) > self.limits.max_dead for x in between):
            return f"{text}; dead units between them let none through: take activation_name: leaky_relu."
        return f"{text}; draw the weights by init_method: lsuv, or add norm layers or residual connections."

    def _size_over_depth(self, reading: Reading) -> str | None:
        sizes = {x: size for x in reading.signal() if (size := reading.size(x)) > 0}
        first = next(iter(sizes), None)
        low, high = (pick(sizes.values(), default=math.nan) for pick in (min, max))
        start = sizes[first] if first else math.nan
        shrinks = self._ratio_news("shrinking", start / low, reading.step)
        grows = self._ratio_news("growing", high / start, reading.step)
        if shrinks is None and grows is None:
            return None
        word, size, since = ("shrunk", low, shrinks) if shrinks is not None else ("grown", high, grows)
        far = next(x for x in sizes if sizes[x] == size)
        return (
            f"The activations have {word} with depth since step {since}: their RMS is {start:.1e} behind {first} and "
            f"{size:.1e} behind {far}; draw the weights by init_method: lsuv, or put norm layers in front of the "
            "activations."
        )

    def _gradient_over_time(self, reading: Reading, earlier: Mapping[str, Sequence[float]]) -> str | None:
        now = reading.values.get("gradient_norm", math.nan)
        usual = self._usual(earlier.get("gradient_norm", ()))
        growth = now / usual if usual > 0 else math.nan
        if not growth > self.limits.max_growth or not self.memory.is_news("gradient", math.log10(growth) / 2):
            return None
        return (
            f"The gradient explodes: its norm is {now:.1e} at step {reading.step}, {growth:.3g} times what it was; "
            f"{_CALM_STEPS} (trainer.gradient_clip_val, or the callback AutoClip)."
        )

    def _size_over_time(self, reading: Reading, earlier: Mapping[str, Sequence[float]]) -> str | None:
        growths = {}
        for x in reading.signal():
            means, stds = (earlier.get(f"{metric}/{x.name}", ()) for metric in ("mean", "std"))
            usual = self._usual([math.hypot(*pair) for pair in zip(means, stds, strict=True)])
            growths[x] = reading.size(x) / usual if usual > 0 else math.nan
        bad = [x for x, growth in growths.items() if growth > self.limits.max_growth]
        news = self._news("explosion", bad, reading.step, lambda x: math.log10(growths[x]) / 2, window=1)
        if not news:
            return None
        first = next(iter(news))
        return (
            f"{first}: the activations explode: their RMS is {reading.size(first):.1e} at step {reading.step}, "
            f"{growths[first]:.3g} times what it was{_others(news, first)}; {_CALM_STEPS} (trainer.gradient_clip_val), "
            "bound the weights (max_norm_bound), or add norm layers."
        )

    def _usual(self, earlier: Sequence[float]) -> float:
        """The median of the earlier values, but no less than the first: a gradient that had died down may come back."""
        known = [value for value in earlier if math.isfinite(value)]
        return max(known[0], statistics.median(known)) if len(known) >= max(self.limits.window - 1, 1) else math.nan

    def _news(
        self,
        finding: str,
        bad: Sequence[Layer],
        step: int,
        badness: Callable[[Layer], float],
        window: int | None = None,
    ) -> dict[Layer, int]:
        """The layers to tell of, in forward order, and since when."""
        since = self.memory.lasting(finding, [x.name for x in bad], step, window)
        lasting = [x for x in bad if x.name in since]
        return {x: since[x.name] for x in lasting if self.memory.is_news(f"{finding}/{x.name}", badness(x))}

    def _ratio_news(self, finding: str, ratio: float, step: int) -> int | None:
        """Since when a ratio has been too large, if that is to be told."""
        since = self.memory.lasting(finding, ["network"] * (ratio > self.limits.max_ratio), step)
        news = bool(since) and self.memory.is_news(finding, math.log10(ratio) / 2)
        return since["network"] if news else None


def _others(layers: Iterable[Layer], named: Layer) -> str:
    names = [str(x) for x in layers if x is not named]
    if not names:
        return ""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" (likewise {', '.join(names[:3])}{rest})"
