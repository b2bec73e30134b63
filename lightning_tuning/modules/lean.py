"""Hosts that offer many techniques as arguments and carry only those that are switched on."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from typing import Any

from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_tuning.errors import CompositionError
from lightning_tuning.mixins import TECHNIQUES
from lightning_tuning.mixins.arguments import unknown_argument
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.composition import in_order, own_arguments, techniques_of

_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


class Lean(type):
    """Metaclass of a host: ``class Host(Base, metaclass=Lean, techniques=(SAMMixin, ...))``.

    The class shows every technique's arguments with their off-values, in its signature, its docstring and so on the
    command line. Calling it makes an instance of the techniques that are switched on over the class, and of no other:
    what is off costs nothing and stands in no stack trace. That instance's class carries the host's name, and it is
    pickled, copied and loaded from checkpoints as the host. All arguments become its hyper-parameters.

    A subclass offers the same techniques; mixins may be added to it in the usual way.
    """

    techniques: tuple[type[TuningMixin], ...]

    def __new__(
        mcs,
        name: str,
        bases: tuple,
        namespace: dict[str, Any],
        techniques: tuple[type[TuningMixin], ...] = (),
        **kwargs: Any,
    ) -> Any:
        cls: Any = super().__new__(mcs, name, bases, namespace, **kwargs)
        if techniques:
            cls.techniques = techniques
            cls.__init__ = _offering_init(cls, techniques)
            cls.__doc__ = _offering_doc(cls, techniques)
        return cls

    def __init__(cls, name: str, bases: tuple, namespace: dict[str, Any], **kwargs: Any) -> None:
        kwargs.pop("techniques", None)
        super().__init__(name, bases, namespace, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        """What ``help`` and editors show: that of ``__init__``, not that of the metaclass's ``__call__``."""
        signature = _init_signature(cls)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        offered = [t for t in cls.techniques if t not in cls.__mro__]
        active = tuple(t for t in offered if t.is_on(kwargs))
        known = _known_arguments(cls)
        for name in kwargs.keys() - known:
            raise not_offered(cls, name) or unknown_argument(cls, name, known)
        _note_what_does_nothing([t for t in offered if t not in active], kwargs)
        settings = {
            name: kwargs.pop(name) for t in offered if t not in active for name in own_arguments(t) if name in kwargs
        }
        module = type.__call__(composed(cls, active), *args, **kwargs)
        if _given_hyperparameters.get() is not None:  # the command line's: classes by path instead of objects
            module.save_hyperparameters()
        else:
            arguments = _flat_arguments(cls, module, args, {**kwargs, **settings})
            module.save_hyperparameters({k: v for k, v in arguments.items() if isinstance(v, _PLAIN)})
        return module


def not_offered(cls: Any, name: str) -> CompositionError | None:
    """The error for the argument of a technique that the host leaves out."""
    for technique in TECHNIQUES:
        if name in own_arguments(technique):
            streams = " in two streams (SemiSupervisedClassifier)" if technique.needs_streams else ""
            return CompositionError(
                f"{cls.__name__} does not offer {technique.__name__} ({name}), which is for "
                f"{' or '.join(technique.tasks)} targets{streams}."
            )
    return None


def _note_what_does_nothing(inactive: list[type[TuningMixin]], kwargs: dict[str, Any]) -> None:
    """Tell of settings that are given for a technique that is off: its strength may have been forgotten."""
    for technique in inactive:
        defaults = {n: p.default for n, p in own_arguments(technique).items() if n not in technique.off}
        given = [f"{name}={kwargs[name]}" for name in defaults if kwargs.get(name, defaults[name]) != defaults[name]]
        if given:
            off = ", ".join(f"{name}={value}" for name, value in technique.off.items())
            rank_zero_info(f"{', '.join(given)}: of no effect, as {technique.__name__} is off ({off}).")


@functools.cache
def composed(cls: Lean, active: tuple[type[TuningMixin], ...]) -> type:
    """``active`` over ``cls`` as one class that looks like ``cls``; without any it is ``cls``."""
    if not active:
        return cls
    own = techniques_of(cls)
    # What belongs right of the mixins that a subclass brings along has to stand right of that subclass.
    left = [t for t in active if not own or in_order([t, own[0]])[0] is t]
    bases: Any = (*in_order(left), cls, *in_order([t for t in active if t not in left]))
    namespace = {
        "__module__": cls.__module__,
        # What is local the command line's parser passes over: else the short name would mean two classes.
        "__qualname__": f"{cls.__qualname__}.<locals>.{cls.__name__}",
        "__doc__": cls.__doc__,
        "__reduce_ex__": lambda self, protocol: (_rebuild, (cls, active), self.__getstate__()),
    }
    return type.__new__(type(cls), cls.__name__, bases, namespace)


def _rebuild(cls: Lean, active: tuple[type[TuningMixin], ...]) -> Any:
    """An empty instance for pickle and copy to fill."""
    made: Any = composed(cls, active)
    return made.__new__(made)


def _offering_init(cls: Any, techniques: tuple[type[TuningMixin], ...]) -> Any:
    """An ``__init__`` that passes everything on; its signature shows the techniques' arguments at their off-values."""
    inner = vars(cls).get("__init__")

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        late = next((name for t in techniques for name in own_arguments(t) if name in kwargs), None)
        if late:
            raise CompositionError(
                f"{type(self).__name__}.__init__ passes {late} on to {cls.__name__}, but techniques are chosen before "
                f"it runs. Leave it out of super().__init__ and give it to {type(self).__name__}(...) or in the YAML."
            )
        (inner.__get__(self) if inner else super(cls, self).__init__)(*args, **kwargs)

    own = inspect.signature(inner or cls.__init__)
    parameters = _resolved(inner or cls.__init__, own.parameters)
    for technique in techniques:
        offered = own_arguments(technique)
        for parameter in _resolved(vars(technique)["__init__"], offered):
            default = technique.off.get(parameter.name, parameter.default)
            parameters.append(parameter.replace(default=default, kind=inspect.Parameter.KEYWORD_ONLY))
    __init__.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return __init__


def _resolved(function: Any, parameters: Any) -> list[inspect.Parameter]:
    """The parameters with annotations as types: as strings they would be looked up in the wrong module."""
    hints = typing.get_type_hints(function)
    return [p.replace(annotation=hints.get(name, p.annotation)) for name, p in parameters.items()]


def _offering_doc(cls: type, techniques: tuple[type[TuningMixin], ...]) -> str:
    entries: dict[str, str] = {}
    for c in (*cls.__mro__, *techniques):
        entries = {**_argument_entries(c), **entries}
    text = inspect.cleandoc(cls.__doc__ or "")
    head = text.split("\nArgs:\n")[0].rstrip()
    return f"{head}\n\nArgs:\n" + "\n".join(
        entries[name] for name in _init_signature(cls).parameters if name in entries
    )


def _argument_entries(cls: type) -> dict[str, str]:
    """What the docstring of ``cls`` itself says of each argument."""
    text = inspect.cleandoc(vars(cls).get("__doc__") or "")
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", text, re.MULTILINE)
    entries = re.split(r"^(?=    \w+: )", section.group(1) if section else "", flags=re.MULTILINE)
    return {entry.split(":")[0].strip(): entry.rstrip() for entry in entries if entry.strip()}


def _init_signature(cls: Any) -> inspect.Signature:
    return inspect.signature(cls.__init__)


def _known_arguments(cls: type) -> set[str]:
    known: set[str] = set()
    for c in cls.__mro__:
        init = vars(c).get("__init__")
        if init is None or c.__module__.startswith(("lightning.", "torch.")):
            continue
        parameters = list(inspect.signature(init).parameters.values())[1:]
        known.update(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break  # nothing is passed on
    return known


def _flat_arguments(cls: type, module: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = _init_signature(cls)
    bound = signature.bind(module, *args, **kwargs)
    bound.apply_defaults()
    arguments = dict(list(bound.arguments.items())[1:])
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
        elif parameter.kind is parameter.VAR_POSITIONAL:
            arguments.pop(parameter.name, None)
    return arguments
