"""An average of weights beside the weights that are trained, and the exchange of the two."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .averaging import ema_update_
from .precision import at_least_float32_dtype

_STATISTICS = ("running_mean", "running_var")
_COMPILED = "_orig_mod"
"""What torch.compile puts into the names of a module's parts."""


class Buffer(NamedTuple):
    """A module's buffer, which the module may exchange for another tensor."""

    owner: nn.Module
    name: str


class Trained(NamedTuple):
    """What of a module an average is taken of, by its name in the module's state."""

    parameters: dict[str, Tensor]
    statistics: dict[str, Buffer]


def trained_parts(module: nn.Module, leaves_out: Callable[[nn.Module], bool] = lambda module: False) -> Trained:
    """The trained parameters of a module and the running statistics of its norm layers.

    A submodule that has parameters and trains none of them, such as a teacher or a frozen backbone, is left out with
    all that is in it. Other buffers than running statistics are no means of anything, so nothing averages them.

    Args:
        module: The module.
        leaves_out: Tells of a submodule whether it is left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2).requires_grad_(False))
        >>> parts = trained_parts(net)
        >>> [*parts.parameters], [*parts.statistics]
        (['0.weight', '0.bias', '1.weight', '1.bias'], ['1.running_mean', '1.running_var'])
    """
    found = Trained({}, {})
    seen: set[int] = set()

    def visit(part: nn.Module, prefix: str) -> None:
        trains = [p.requires_grad for p in part.parameters()]
        if id(part) in seen or leaves_out(part) or (trains and not any(trains)):
            return
        seen.add(id(part))
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found.parameters[prefix + name] = parameter
        for name in _STATISTICS:
            if part._buffers.get(name) is not None:
                found.statistics[prefix + name] = Buffer(part, name)
        for name, child in part.named_children():
            visit(child, prefix if name == _COMPILED else f"{prefix}{name}.")

    visit(module, "")
    return found


def parts_named(module: nn.Module, names: Container[str]) -> Trained:
    """Those of a module's parameters and running statistics that :func:`trained_parts` named so, trained or not."""
    found = Trained({}, {})
    for path, part in module.named_modules():
        prefix = "".join(f"{step}." for step in path.split(".") if step and step != _COMPILED)
        for name, parameter in part._parameters.items():
            if parameter is not None and prefix + name in names:
                found.parameters[prefix + name] = parameter
        for name in _STATISTICS:
            if part._buffers.get(name) is not None and prefix + name in names:
                found.statistics[prefix + name] = Buffer(part, name)
    return found


class WeightAverage:
    """Averages of tensors that training changes, which can take their place.

    Averages have at least float32's precision and, of sharded tensors, the process's own shard. They take the place of
    the tensors by an exchange of pointers, which costs no pass over the weights; where device or precision differ, and
    in shards, by copies.

    Args:
        tensors: What is averaged. The averages begin with the present values.
        held: Whether running statistics are not averaged but exchanged only, for somebody to compute them anew.
        offload: Whether the averages are kept in the CPU's memory.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(1.0)
        >>> average = WeightAverage(trained_parts(net))
        >>> _ = net.weight.data.fill_(3.0)
        >>> average.update(decay=0.75)
        >>> average.swap_in()
        >>> net.weight.item()
        1.5
        >>> average.swap_out()
        >>> net.weight.item()
        3.0
    """

    def __init__(self, tensors: Trained, held: bool = False, offload: bool = False) -> None:
        self._tensors = Trained({}, {})
        self._held, self._offload = held, offload
        self._averages: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None
        self.add(tensors)

    @property
    def is_in(self) -> bool:
        """Whether the averages are in the place of the tensors."""
        return self._raw is not None

    @torch.no_grad()
    def add(self, tensors: Trained) -> None:
        """Take up the tensors whose names are new. Their averages begin with the present values."""
        mine, known = self._tensors, self._averages
        mine.parameters.update({name: p for name, p in tensors.parameters.items() if name not in known})
        mine.statistics.update({name: b for name, b in tensors.statistics.items() if name not in known})
        live = self._live()
        self._averages = {n: self._averages[n] if n in self._averages else self._begun(n, live[n]) for n in live}
        self._list(live)

    @torch.no_grad()
    def place(self) -> None:
        """Follow the tensors to their devices."""
        live = self._live()
        if not self._offload:
            self._averages = {name: value.to(live[name].device) for name, value in self._averages.items()}
        self._list(live)

    def _begun(self, name: str, tensor: Tensor) -> Tensor:
        if self._held and name in self._tensors.statistics:
            return tensor.clone()
        device = torch.device("cpu") if self._offload else tensor.device
        return tensor.detach().to(device, at_least_float32_dtype(tensor), copy=True)

    def _list(self, live: dict[str, Tensor]) -> None:
        """Look up once what each update needs."""
        followed = self._tensors.parameters if self._held else self._averages
        self._moved = [self._averages[name] for name in followed]
        self._alike = all(_alike(self._averages[name], live[name]) for name in followed)
        self._sharded = any(map(_is_shard, self._tensors.parameters.values()))

    def _live(self) -> dict[str, Tensor]:
        """The tensors as they are in this process."""
        parameters = self._tensors.parameters
        local = {name: _local(p) for name, p in parameters.items()}
        return local | {name: getattr(*buffer) for name, buffer in self._tensors.statistics.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """One step of :func:`ema_update_`."""
        followed: Iterable[Tensor] = self._tensors.parameters.values()
        if self._sharded:
            followed = map(_local, followed)
        if not self._held:
            followed = [*followed, *(getattr(owner, name) for owner, name in self._tensors.statistics.values())]
        if not self._alike:
            followed = (t.to(a.device, a.dtype) for t, a in zip(followed, self._moved, strict=True))
        ema_update_(self._moved, list(followed), decay)

    @torch.no_grad()
    def swap_in(self) -> None:
        """Put the averages in the place of the tensors."""
        if self._raw is None:
            with torch.inference_mode(False):  # what were made under it could not be trained
                self._raw = {}
                for name, tensor in self._live().items():
                    self._raw[name] = self._exchange(name, tensor, self._averages[name].to(tensor))

    @torch.no_grad()
    def swap_out(self) -> None:
        """Put the tensors back."""
        raw, self._raw = self._raw, None
        if raw is not None:
            with torch.inference_mode(False):
                live = self._live()
                for name, before in raw.items():
                    shown = self._exchange(name, live[name], before.to(live[name]))
                    if name in self._tensors.statistics and not torch.equal(shown, self._averages[name].to(shown)):
                        self._averages[name].copy_(shown)  # somebody computed them anew, in a copy

    def _exchange(self, name: str, tensor: Tensor, value: Tensor) -> Tensor:
        if _is_shard(self._tensors.parameters.get(name)):  # FSDP keeps a view of a shard's memory
            before = tensor.clone()
            tensor.copy_(value)
        else:
            before = tensor.data
            tensor.data = value
        return before

    def raw(self) -> dict[str, Tensor]:
        """The tensors themselves, in whichever place they are, shards assembled. Every rank has to call it."""
        raw = self._live() if self._raw is None else self._raw
        return {name: self._whole(name, value.detach()) for name, value in raw.items()}

    def values(self) -> dict[str, Tensor]:
        """The averages, shards assembled. Every rank has to call it."""
        return {name: self._whole(name, value) for name, value in self._averages.items()}

    def finer(self) -> dict[str, Tensor]:
        """The averages that the tensors' precision cannot hold."""
        live = self._live()
        different = {n: a for n, a in self._averages.items() if a.dtype != live[n].dtype}
        return {name: self._whole(name, value) for name, value in different.items()}

    @torch.no_grad()
    def load(self, finer: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`finer` or :meth:`values` gave. Other averages are those with which they began."""
        for name, value in finer.items():
            if name in self._averages:
                self._averages[name].copy_(_part(self._tensors, name, value))

    def versions(self) -> list[int]:
        """Changes when somebody writes to the parameters."""
        return [parameter._version for parameter in self._tensors.parameters.values()]

    def _whole(self, name: str, value: Tensor) -> Tensor:
        like: Any = self._tensors.parameters.get(name)
        if not _is_shard(like):
            return value
        from torch.distributed.tensor import DTensor

        shards = DTensor.from_local(
            value.to(like.device), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )
        return shards.full_tensor()


@torch.no_grad()
def assign_(tensors: Trained, values: Mapping[str, Tensor]) -> None:
    """Write to the tensors what :meth:`WeightAverage.raw` gave."""
    for name, parameter in tensors.parameters.items():
        _local(parameter).copy_(_part(tensors, name, values[name]))
    for name, buffer in tensors.statistics.items():
        getattr(*buffer).copy_(values[name])


def _part(tensors: Trained, name: str, value: Tensor) -> Tensor:
    """This process's shard of a whole tensor."""
    like: Any = tensors.parameters.get(name)
    if not _is_shard(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements).to_local()


def reshard(module: nn.Module) -> None:
    """Have FSDP 2 forget the whole weights that it keeps after a pass without a backward pass: they are those of before
    an exchange or an update. And a module shows its shards then."""
    for part in module.modules():
        forget = getattr(part, "reshard", None)
        if callable(forget):
            forget()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local().data if _is_shard(tensor) else tensor  # type: ignore[attr-defined]


def _is_shard(tensor: Any) -> bool:
    """Whether it is a DTensor. To import that class takes seconds, which nobody needs who has none."""
    return hasattr(tensor, "placements")


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device
