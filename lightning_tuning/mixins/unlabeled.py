"""What all techniques share that learn from unlabelled inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import has_streams, is_batch_norm, labeled_part

from .base import TuningMixin
from .inner_pass import in_inner_pass
from .inputs import first_tensor


@dataclass(frozen=True)
class Unlabeled:
    """The unlabelled part of a batch."""

    views: Mapping[str, Any]
    """The inputs by view: ``weak``, ``strong``, maybe ``weak_2``, ``strong_2`` and so on, all of the same samples."""
    index: Tensor | None
    """Each sample's id, ``[N]``."""
    target: Tensor | None
    """The true class ids, where they are known, ``[N, ...]``, and below 0 elsewhere. For what is logged alone."""

    @property
    def weak(self) -> Any:
        return self.views["weak"]

    @property
    def strong(self) -> Any:
        return self.views["strong"]

    def named(self, kind: str) -> list[Any]:
        """All views of a kind, ``weak`` or ``strong``, in order."""
        more = sorted((name for name in self.views if name.startswith(f"{kind}_")), key=lambda n: int(n.split("_")[1]))
        return [self.views[name] for name in (kind, *more)]


class UnlabeledMixin(TuningMixin):
    """Base of the techniques of stage ``split``, for batches ``{"labeled": ..., "unlabeled": ...}``.

    Each of them hands the batch on as a whole; this class, which stands right of them all, hands the labelled part to
    the right. So several of them learn from one unlabelled batch.
    """

    stage = "split"

    def asks_teacher(self) -> bool:
        return True

    def unlabeled_of(self, batch: Any, technique: str, two_views: bool = False, streams: bool = False) -> Unlabeled:
        """The unlabelled inputs of a batch; those of a batch without streams are its labelled inputs.

        Args:
            batch: ``{"labeled": ..., "unlabeled": part}``, the part being inputs ``x`` or ``[x]``, ``(weak, strong)``
                or ``{"weak": x, "strong": x}``, maybe with more views ``weak_2``, ``strong_2``, ..., ids ``index`` and
                true classes ``target``. Where ``strong`` is missing, ``weak_2`` stands for it, else the only kind of
                view there is. Or the host's own batch, ``(x, target)`` or ``(x, target, index)``.
            technique: Who asks, for the message.
            two_views: Whether two views of unlabelled inputs are a must.
            streams: Whether unlabelled inputs are a must, be it of one view.

        Raises:
            InvalidValueError: The batch is of another form.
        """
        if not has_streams(batch):
            if two_views or streams:
                raise InvalidValueError(_no_streams(batch, technique))
            x, target = self.unpack_batch(batch)
            index = batch[2] if isinstance(batch, (tuple, list)) and len(batch) > 2 else None
            ids = target if isinstance(target, Tensor) and not target.is_floating_point() else None
            return Unlabeled({"weak": x, "strong": x}, _as_index(index, x), ids)
        part = batch["unlabeled"]
        if isinstance(part, (tuple, list)) and len(part) == 1:
            part = part[0]  # as a TensorDataset of the inputs alone gives it
        if views := _views(part, complete=not two_views):
            return Unlabeled(_alike(views, technique), _as_index(part.get("index"), views["weak"]), part.get("target"))
        if isinstance(part, (tuple, list)) and len(part) == 2:
            return Unlabeled(_alike({"weak": part[0], "strong": part[1]}, technique), None, None)
        if two_views or not isinstance(part, (Tensor, Mapping)):
            keys = f" with the keys {sorted(part)}" if isinstance(part, Mapping) else ""
            alone = "" if two_views else ", or x alone"
            raise InvalidValueError(
                f'{technique} needs unlabelled batches {{"weak": x, "strong": x}} or (weak, strong): two views of the '
                f"same inputs{alone}. Got a {type(part).__name__}{keys}."
            )
        return Unlabeled({"weak": part, "strong": part}, None, None)

    def along(self, x: Any, joint: bool = False) -> Rider:
        """Send inputs through the network together with the labelled ones.

        Call it before ``super().training_step``, and what it returns afterwards for the logits of ``x``, with graph.
        They come from one forward pass with the labelled inputs if no layer couples samples, or if ``joint``; else
        from a pass of their own, as always where a technique couples the labelled samples (manifold mixup).

        Args:
            x: A tensor or a dict of tensors.
            joint: Whether batch norm may see the labelled inputs and ``x`` as one batch.
        """
        rider = Rider(self, x)
        if not self.samples_coupled() or (joint and not self._technique_couples()):
            self.__dict__.setdefault("_riders", []).append(rider)
        return rider

    def samples_coupled(self) -> bool:
        """Whether what the network computes of a sample depends on the rest of the batch: batch norm in training."""
        return self._technique_couples() or any(m.training and is_batch_norm(m) for m in self.modules())

    def _technique_couples(self) -> bool:
        return any(t.couples for t in self.active_techniques())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.__dict__["_boarding"] = bool(self.__dict__.get("_riders"))
        try:
            return super().training_step(labeled_part(batch), batch_idx)
        finally:
            self.__dict__["_boarding"] = False
            self.__dict__.pop("_riders", None)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.__dict__.pop("_riders", None)  # an earlier fit may have been interrupted

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        boards = self.__dict__.get("_boarding") and torch.is_grad_enabled() and not in_inner_pass(self)
        if not boards or len(args) != 1 or kwargs:
            return super().forward(*args, **kwargs)
        self.__dict__["_boarding"] = False
        x, riders = args[0], [r for r in self.__dict__["_riders"] if fits(args[0], r.x)]
        sizes = [len(first_tensor(x)), *(len(first_tensor(r.x)) for r in riders)]
        logits = super().forward(joined([x, *(r.x for r in riders)]) if riders else x)
        if not riders or not isinstance(logits, Tensor) or len(logits) != sum(sizes):
            return super().forward(x) if riders else logits
        mine, *theirs = logits.split(sizes)
        for rider, part in zip(riders, theirs, strict=True):
            rider.logits = part
        return mine


class Rider:
    """Inputs that go along in a forward pass; calling it gives their logits ``[N, C, ...]``."""

    def __init__(self, module: nn.Module, x: Any) -> None:
        self.module, self.x = module, x
        self.logits: Tensor | None = None

    def __call__(self) -> Tensor:
        return self.module(self.x) if self.logits is None else self.logits


def agreement(label: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Which predicted class ids ``[N, ...]`` are the true ones of an unlabelled batch, and which true ones are known.

    A true class below 0 is not known.

    Raises:
        InvalidValueError: The true ones are of another shape.
    """
    if label.shape != target.shape:
        raise InvalidValueError(
            f"The true classes of an unlabelled batch are {list(target.shape)}, its predicted ones "
            f"{list(label.shape)}. Give class ids of that shape as its target, or none."
        )
    return label == target, target >= 0


def _views(part: Any, complete: bool) -> dict[str, Any] | None:
    """The views of an unlabelled batch, ``weak`` and ``strong`` among them; None if it is none of views."""
    if not isinstance(part, Mapping):
        return None
    views = {name: x for name, x in part.items() if str(name).split("_")[0] in ("weak", "strong")}
    if misnamed := [name for name in views if not _VIEW.fullmatch(name)]:
        raise InvalidValueError(
            f"An unlabelled batch has a view {misnamed[0]!r}. Views are named weak, weak_2, weak_3, ... and strong, "
            "strong_2, strong_3, ..."
        )
    if complete and views:
        weak = views.setdefault("weak", next(iter(views.values())))
        views.setdefault("strong", views.get("weak_2", weak))
    return views if {"weak", "strong"} <= views.keys() else None


def _alike(views: dict[str, Any], technique: str) -> dict[str, Any]:
    """The views, if they can be views of the same inputs: ``(x, target)`` of a data set with labels are none."""
    parts = {name: list(x.values()) if isinstance(x, Mapping) else [x] for name, x in views.items()}
    tensors = {name: x for name, values in parts.items() for x in values[:1] if isinstance(x, Tensor)}
    if len({(len(x), x.ndim, x.dtype) for x in tensors.values()}) > 1:
        came = ", ".join(f"{name} {x.dtype} {list(x.shape)}" for name, x in tensors.items())
        raise InvalidValueError(
            f"{technique} got unlabelled views that are not of the same inputs: {came}. A pair is (weak, strong), not "
            "(x, target)."
        )
    return views


def _no_streams(batch: Any, technique: str) -> str:
    came = f"a dict with the keys {sorted(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    return (
        f'{technique} needs batches {{"labeled": ..., "unlabeled": ...}}, but got {came}. Return such a dict of '
        "loaders from train_dataloader, or set unlabeled_batch_size of a datamodule of lightning_tuning."
    )


def _as_index(index: Any, x: Any) -> Tensor | None:
    """The third item of a batch is an index only if it is one integer a sample."""
    if not isinstance(index, Tensor) or index.is_floating_point() or index.shape != (len(first_tensor(x)),):
        return None
    return index


_VIEW = re.compile(r"(weak|strong)(_\d+)?")


def fits(x: Any, other: Any) -> bool:
    """Whether two inputs can be one batch."""
    if isinstance(x, Mapping) and isinstance(other, Mapping):
        return x.keys() == other.keys() and all(fits(x[key], other[key]) for key in x)
    tensors = isinstance(x, Tensor) and isinstance(other, Tensor)
    return tensors and x.shape[1:] == other.shape[1:] and x.dtype == other.dtype


def joined(parts: list[Any]) -> Any:
    """Inputs that fit one another as one batch."""
    if isinstance(parts[0], Mapping):
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return torch.cat(parts)
