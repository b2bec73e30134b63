"""Hooks that omit activations in layers that somebody else wrote, and where they go."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import drop_path

from .composition import is_tuning_mixin

# Hooks are objects and no closures: they are copied with a teacher and pickled with the model.


@dataclass(eq=False)
class DropInput:
    """A forward pre-hook that passes a layer's input through ``drop(x, rate, **settings)`` while the layer trains."""

    drop: Callable[..., Tensor]
    rate: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: ClassVar[float] = 1.0

    def attach(self, layer: nn.Module) -> RemovableHandle:
        return layer.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if not layer.training or self.rate == 0:
            return None
        if args:
            return (self.drop(args[0], self.rate, **self.settings), *args[1:]), kwargs
        return args, {**kwargs, "input": self.drop(kwargs["input"], self.rate, **self.settings)}


@dataclass(eq=False)
class DropOutput:
    """A forward hook that drops a module's output, a residual branch, for whole samples while the module trains."""

    rate: float
    batch_dim: int = 0
    share: float = 1.0
    """Its part of the rate that the technique is given."""

    def attach(self, module: nn.Module) -> RemovableHandle:
        return module.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if not module.training or self.rate == 0:
            return None
        if isinstance(output, Tensor):
            return drop_path(output, self.rate, self.batch_dim)
        if not (isinstance(output, tuple) and output and isinstance(output[0], Tensor)):
            raise InvalidValueError(
                f"A {type(module).__name__} returned a {type(output).__name__}; a residual branch must be a tensor, or "
                "a tuple whose first item is one. Name another module in stochastic_depth_layers."
            )
        items = (drop_path(output[0], self.rate, self.batch_dim), *output[1:])
        return type(output)(*items) if hasattr(output, "_fields") else items


class Injection:
    """The hooks of one technique, by the names of the modules that they are registered in."""

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.hooks: dict[str, Any] = {}
        # Kept also because unpickling them keeps torch from giving their numbers, the hooks' keys, to others.
        self._handles: list[RemovableHandle] = []

    def place(self, model: nn.Module, modules: dict[str, nn.Module], make: Callable[[int, str], Any]) -> None:
        """Hook ``modules`` and no others.

        Args:
            model: What they are part of.
            modules: The modules by name.
            make: Makes the hook of a module; it gets the module's place among all, from 1, and its name.
        """
        if modules == self.modules:  # compiled code holds on to the hooks there are
            return
        self._remove_from(model)
        self.modules = modules
        self.hooks = {name: make(place, name) for place, name in enumerate(modules, 1)}
        self._handles = [self.hooks[name].attach(module) for name, module in modules.items()]

    def _remove_from(self, model: nn.Module) -> None:
        # The handles know the layers of old alone: who exchanges a layer moves its hooks along.
        ours = {id(hook) for hook in self.hooks.values()}
        for module in {*model.modules(), *self.modules.values()}:
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [key for key, hook in hooks.items() if id(hook) in ours]:
                    hooks.pop(key)
                    module._forward_pre_hooks_with_kwargs.pop(key, None)

    def set_rate(self, rate: float) -> None:
        """Give each hook its share of a rate."""
        for hook in self.hooks.values():
            hook.rate = hook.share * rate


def hookable_modules(module: nn.Module) -> dict[str, nn.Module]:
    """``module`` and all within it by name, without teachers: copies of the whole module, and what is in evaluation
    mode while the module is not, where no hook would act."""
    copies = [m for m in module.modules() if m is not module and is_tuning_mixin(type(m))]
    left_out = {part for m in copies for part in m.modules()}
    return {name: m for name, m in module.named_modules() if m not in left_out and m.training >= module.training}


def named(modules: dict[str, nn.Module], pattern: str | None) -> dict[str, nn.Module]:
    """Those of ``modules`` whose whole name matches the regular expression ``pattern``; all if it is None."""
    return {name: m for name, m in modules.items() if pattern is None or re.fullmatch(pattern, name)}


def check_pattern(argument: str, pattern: str | None) -> None:
    """Refuse what is no regular expression.

    Raises:
        InvalidValueError: ``pattern`` is not None and does not compile.

    Example:
        >>> check_pattern("dropout_layers", "net.(")
        Traceback (most recent call last):
        lightning_tuning.errors.InvalidValueError: dropout_layers is 'net.(', which is no regular expression: missing \
), unterminated subpattern at position 4.
    """
    try:
        re.compile(pattern or "")
    except (re.error, TypeError) as error:
        raise InvalidValueError(f"{argument} is {pattern!r}, which is no regular expression: {error}.") from None


def no_match(argument: str, pattern: str, names: Iterable[str], what: str) -> str:
    """The sentence that says that a pattern fits none of the names there are."""
    names = list(names)
    some = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
    return f"{argument}={pattern!r} matches the whole name of none of its {what}: {some}."


def weight_layers(module: nn.Module, kinds: tuple[type, ...], pattern: str | None) -> dict[str, nn.Module]:
    """The layers of ``kinds`` that ``pattern`` names, or without one all but the first, which sees the data."""
    # Attention passes its output projection's weight on, but never calls that layer.
    layers = {
        name: m
        for name, m in hookable_modules(module).items()
        if isinstance(m, kinds) and not isinstance(m, nn.modules.linear.NonDynamicallyQuantizableLinear)
    }
    return named(layers, pattern) if pattern is not None else dict(list(layers.items())[1:])
