"""What makes a class of mixins and a host correct, checked when the class is created."""

from __future__ import annotations

import inspect
import itertools
import sys
import types
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule

from lightning_tuning.errors import CompositionError

if TYPE_CHECKING:
    from .base import TuningMixin

STAGES = ("optimizer", "teacher", "split", "mix", "repeat", "attack", "loss", "task", "weights", "init", "layers")
"""Left to right in the class statement. The batch travels right, the loss comes back left. The last three build the
model, from right to left: first the layers are changed, then their weights are drawn, then they are constrained."""


def is_tuning_mixin(cls: type) -> bool:
    """Whether ``cls`` is :class:`TuningMixin` or inherits from it."""
    return hasattr(cls, "_is_tuning_mixin")


def is_technique(cls: type) -> bool:
    """Whether ``cls`` is a mixin that names a technique (and not a composed class that merely inherits from one)."""
    return is_tuning_mixin(cls) and bool(vars(cls).get("stem"))


def techniques_of(cls: type) -> list[type[TuningMixin]]:
    """The techniques in ``cls``, left to right."""
    return [c for c in cls.__mro__ if is_technique(c)]


def members(technique: type, base: type | None = None) -> dict[str, Any]:
    """What a technique defines, itself or in a class that it shares with other techniques, by name.

    Args:
        technique: A mixin, or another class with ``base`` among its bases.
        base: The class whose members, and those behind it, do not count. Default: ``TuningMixin``.
    """
    from .base import TuningMixin

    own = itertools.takewhile(lambda c: c is not (base or TuningMixin), technique.__mro__)
    return {name: member for c in reversed(list(own)) for name, member in vars(c).items()}


def hosts_of(cls: type) -> list[type[LightningModule]]:
    """The LightningModules in ``cls`` that are neither mixins nor Lightning's own, left to right."""
    return [
        c
        for c in cls.__mro__
        if issubclass(c, LightningModule) and not is_tuning_mixin(c) and c not in LightningModule.__mro__
    ]


def in_order(mixins: list[type[TuningMixin]]) -> list[type[TuningMixin]]:
    """``mixins`` sorted by stage; those without a stage come last, next to the host."""
    return sorted(mixins, key=lambda m: STAGES.index(m.stage) if m.stage else len(STAGES))


def class_line(name: str, mixins: list[type[TuningMixin]], host: type) -> str:
    """The class statement to write."""
    return f"class {name}({', '.join(c.__name__ for c in [*in_order(mixins), host])}):"


def own_arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The named parameters of the ``__init__`` that ``cls`` itself defines, without ``self``."""
    init = vars(cls).get("__init__")
    if init is None or hasattr(init, "__signature__"):  # a made-up signature shows what others take
        return {}
    parameters = list(inspect.signature(init).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def check_not_pytorch_lightning(cls: type) -> None:
    """Refuse a host built on the other name of Lightning, whose Trainer and classes do not mix with ours."""
    for base in cls.__mro__:
        if base.__module__.startswith("pytorch_lightning."):
            host = next(c for c in cls.__mro__ if base in c.__mro__ and not is_tuning_mixin(c))
            raise CompositionError(
                f"{host.__name__} comes from the package pytorch_lightning, which does not mix with lightning.pytorch. "
                "Write `import lightning.pytorch as pl` instead of `import pytorch_lightning as pl` in its file."
            )


def check_composition(cls: type) -> None:
    """Raise :class:`CompositionError` if the mixins and the host in ``cls`` do not fit together.

    Classes without a host (the mixins themselves) and without a technique pass.
    """
    techniques, hosts = techniques_of(cls), hosts_of(cls)
    if is_technique(cls) or not techniques or not hosts:
        return
    _check_no_host_left_of_a_mixin(cls, techniques, hosts)
    _check_nothing_hides_a_mixin(cls, techniques)
    _check_order(cls, techniques, hosts)
    _check_host_members(cls, techniques, hosts)
    _check_hidden_names(hosts)
    _check_training_step(techniques, hosts)
    _check_arguments_once(cls, techniques, hosts)


def _check_no_host_left_of_a_mixin(cls: type, techniques: list, hosts: list) -> None:
    mro = cls.__mro__
    for host in hosts:
        for technique in techniques:
            if mro.index(host) < mro.index(technique):
                raise CompositionError(
                    f"{technique.__name__} stands right of {host.__name__}, where it would do nothing. "
                    f"Write: {class_line(cls.__name__, techniques, hosts[0])}"
                )


def _calls_super(function: Any) -> bool:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is None or "super" in code.co_names


def _check_nothing_hides_a_mixin(cls: type, techniques: list) -> None:
    """A method written into the composed class stands left of the mixins: without super() it switches them off."""
    from .base import TuningMixin

    hideable = {**{t: members(t) for t in techniques}, TuningMixin: vars(TuningMixin)}
    for left in cls.__mro__[: cls.__mro__.index(techniques[-1])]:
        if any(issubclass(t, left) for t in techniques):  # a technique, or a base that some share
            continue
        for name, member in vars(left).items():
            if not inspect.isfunction(member) or name.startswith("__") or _calls_super(member):
                continue
            behind = left.__mro__[1:]
            hidden = [t for t, defined in hideable.items() if t in behind and name in defined]
            if hidden:
                raise CompositionError(
                    f"{left.__name__}.{name} does not call super(), so {hidden[0].__name__} would do nothing. "
                    f"Move {name} to a LightningModule of its own, say Model, and write: "
                    f"{class_line(cls.__name__, techniques, type('Model', (), {}))}"
                )


def _check_order(cls: type, techniques: list, hosts: list) -> None:
    staged = [t for t in techniques if t.stage]
    for left, right in itertools.pairwise(staged):
        if STAGES.index(left.stage) > STAGES.index(right.stage):
            raise CompositionError(
                f"{right.__name__} (stage {right.stage!r}) must stand left of {left.__name__} (stage {left.stage!r}). "
                f"Write: {class_line(cls.__name__, techniques, hosts[0])}"
            )


def _provides(cls: type, name: str) -> bool:
    techniques = techniques_of(cls)
    hosts = (
        c for c in cls.__mro__ if c not in LightningModule.__mro__ and not any(issubclass(t, c) for t in techniques)
    )
    return any(name in vars(c) for c in hosts)


def _check_host_members(cls: type, techniques: list, hosts: list) -> None:
    for technique in techniques:
        for name in technique.needs:
            # Attributes such as num_classes are known at fit start only.
            if name in HOST_METHODS and not _provides(cls, name):
                raise CompositionError(
                    f"{technique.__name__} needs {hosts[0].__name__}.{HOST_METHODS[name]}, which does not exist. "
                    f"Define it in {hosts[0].__name__}."
                )


HOST_METHODS = {
    "forward": "forward(x) -> logits [N, C, ...]",
    "training_step": "training_step(batch, batch_idx) -> loss",
    "compute_loss": "compute_loss(logits, target) -> scalar loss (and training_step has to call it)",
}


def _check_hidden_names(hosts: list) -> None:
    """The mixins' own names would stand left of the host's, and mean something else."""
    for host in hosts:
        for name in OWN_NAMES:
            if name in vars(host):
                raise CompositionError(
                    f"{host.__name__}.{name} would be hidden by the mixins' own {name}. Rename it in {host.__name__}."
                )


OWN_NAMES = (
    *("stem", "stage", "off", "needs", "sharded", "tasks", "changes", "conflicts", "is_on", "no_effect", "extra_cost"),
    *("active_techniques", "tuning_settings", "trainable_parameters", "penalized_parameters", "without_weights"),
    *("class_count", "pseudo_logits", "teacher_module", "add_term", "ramped", "replaying", "couples", "needs_streams"),
    *("unlabeled_of", "along", "samples_coupled", "steps_in", "adjustable", "check_adjusted", "fixed", "why_fixed"),
    "whole_batch",
)


def _check_training_step(techniques: list, hosts: list) -> None:
    if not any("training_step" in members(t) for t in techniques):
        return
    host = next((h for h in hosts if "training_step" in vars(h)), None)
    if host is None:
        return
    signature = inspect.signature(host.training_step)
    try:
        signature.bind(None, "batch", 0)
        fits = "dataloader_iter" not in signature.parameters
    except TypeError:
        fits = False
    if not fits:
        raise CompositionError(
            f"{host.__name__}.training_step{signature} does not take what the mixins pass on. "
            "Write: def training_step(self, batch, batch_idx):"
        )


def _check_arguments_once(cls: type, techniques: list, hosts: list) -> None:
    taken: dict[str, type] = {}
    for owner in [*techniques, *hosts]:
        for name in own_arguments(owner):
            other = taken.get(name)
            # A host that subclasses another host may well pass an argument on under its own name.
            if other is not None and is_technique(other):
                raise CompositionError(
                    f"{cls.__name__}: both {other.__name__} and {owner.__name__} have an argument {name!r}, and the "
                    f"second would silently keep its default. Rename it in {owner.__name__}."
                )
            taken[name] = owner


def compose(host: type[LightningModule], *mixins: type[TuningMixin], name: str | None = None) -> type[LightningModule]:
    """A class of ``mixins`` over ``host``, the mixins in their right order whatever order they come in.

    To pickle its instances, assign the class at module level to a variable called ``name``.

    Args:
        host: A LightningModule class that trains.
        mixins: Mixin classes from :mod:`lightning_tuning`.
        name: The class's name; default: the host's name with ``Tuned`` in front.

    Returns:
        The new class, made as the class statement would make it and so with the same checks.

    Raises:
        CompositionError: The classes do not fit together.

    Example:
        >>> from lightning_tuning import L1Mixin, SAMMixin, compose
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> Net = compose(BoringModel, L1Mixin, SAMMixin, name="Net")
        >>> [c.__name__ for c in Net.__bases__]
        ['SAMMixin', 'L1Mixin', 'BoringModel']
    """
    given = (host, *mixins)
    if all(isinstance(c, type) for c in given):
        check_not_pytorch_lightning(host)
        fits = issubclass(host, LightningModule) and not is_tuning_mixin(host) and all(map(is_technique, mixins))
    else:
        fits = False
    if not fits:
        shown = ", ".join(c.__name__ if isinstance(c, type) else f"an object of {type(c).__name__}" for c in given)
        raise CompositionError(
            f"compose(host, *mixins) takes the class of a LightningModule and then classes of mixins, not ({shown})."
        )
    if twice := [c.__name__ for c in dict.fromkeys(mixins) if mixins.count(c) > 1]:
        raise CompositionError(f"compose got {', '.join(twice)} twice. Name each mixin once.")
    name = name or f"Tuned{host.__name__}"
    # Pickle looks a class up by its module, so it has to be the caller's.
    namespace = {"__module__": sys._getframe(1).f_globals["__name__"], "__doc__": host.__doc__}
    return types.new_class(name, (*in_order(list(mixins)), host), {}, lambda ns: ns.update(namespace))
