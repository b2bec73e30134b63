"""What a composed class takes as keyword arguments."""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from typing import Any

from lightning.pytorch import LightningModule

from lightning_tuning.errors import CompositionError, did_you_mean

from .composition import hosts_of, own_arguments, techniques_of

given_at_load: ContextVar[frozenset[str] | None] = ContextVar("given_at_load", default=None)
"""While a checkpoint is loaded, the names of the arguments that the caller gave."""


def check_arguments(cls: type, kwargs: dict[str, Any]) -> None:
    """Refuse keyword arguments that nobody takes. Runs right of all mixins: what is left is meant for the host."""
    hosts = hosts_of(cls)
    if not hosts:
        raise CompositionError(
            f"{cls.__name__} is a mixin without a host. Write: class Net({cls.__name__}, MyLightningModule): ..."
        )
    init = hosts[0].__init__
    parameters = {} if init is LightningModule.__init__ else inspect.signature(init).parameters
    known = {*parameters, *(name for t in techniques_of(cls) for name in own_arguments(t))}
    swallows_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    stems = tuple(f"{t.stem}_" for t in techniques_of(cls))
    given = given_at_load.get()
    for name in kwargs.keys() - known:
        # A host with **kwargs may know what to do with a name; with a technique's prefix it is surely misspelt.
        if swallows_all and not name.startswith(stems):
            continue
        if given is not None and name not in given and not name.startswith(stems):
            del kwargs[name]
        else:
            raise unknown_argument(cls, name, known - {"self", "args", "kwargs"})


def unknown_argument(cls: type, name: str, known: set[str]) -> CompositionError:
    """The error for an argument that does not exist, with the likeliest name that does."""
    hint = did_you_mean(name, known)
    takes = f" It takes {', '.join(sorted(known))}." if hint == "." else ""
    return CompositionError(f"{cls.__name__}() has no argument {name!r}{hint}{takes}")
