"""Feature distillation: layers of the student match layers of the teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_tuning.errors import InvalidValueError, check_range, did_you_mean
from lightning_tuning.functional import feature_distance
from lightning_tuning.mixins.distilling import DistillingMixin
from lightning_tuning.mixins.inner_pass import in_inner_pass
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.mixins.projector import make_projector, projectors_of


class FeatureDistillationMixin(DistillingMixin):
    """Pulls the activations of named layers towards those of a teacher's layers (FitNets, Romero et al., 2015).

    It adds ``weight`` times the mean squared difference, over all elements and pairs of layers, to the loss. A trained
    linear projector, a 1x1 convolution for maps, stands between a student's layer and the teacher's, so that their
    widths may differ; their heights and widths may not. It needs a teacher left of it: FrozenTeacherMixin or
    EMATeacherMixin.

    Args:
        feature_distillation_weight: Factor of the mean squared difference, >= 0; 1 to 100 is usual. Off: 0.
        feature_distillation_layers: The layers, by their names in ``named_modules()``, with commas between:
            ``network.2`` means the same name in both networks, ``network.2=network.4`` the student's and the teacher's.
        feature_distillation_projector: Whether there are projectors. They are parameters of the module, at the end of
            its ``state_dict``. Without them the shapes must be the same.

    Raises:
        InvalidValueError: An argument is out of range, a layer does not exist, or shapes do not fit.

    Source: Romero et al., 2015, "FitNets: hints for thin deep nets", the hint loss, with the mean for half the
    sum, and at the same time as the rest of the loss instead of before it.
    """

    stem = "feature_distillation"
    off = {"feature_distillation_weight": 0.0}
    needs = ("training_step", "compute_loss", "forward")
    changes = ("model", "loss")

    def __init__(
        self,
        *args: Any,
        feature_distillation_weight: float = 1.0,
        feature_distillation_layers: str | None = None,
        feature_distillation_projector: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("feature_distillation_weight", feature_distillation_weight)
        self.feature_distillation_weight = feature_distillation_weight
        self.feature_distillation_layers = feature_distillation_layers
        self.feature_distillation_projector = feature_distillation_projector
        self._feature_pairs = _pairs(feature_distillation_layers)

    @property
    def _projectors(self) -> nn.ModuleList | None:
        return self._modules.get("feature_distillation_projectors")  # type: ignore[return-value]

    def no_effect(self) -> str | None:
        if self._feature_pairs:
            return self._without_teacher()
        parts = ((name, m) for name, m in self.named_modules() if name and not list(m.children()))
        some = ", ".join(repr(name) for name, m in parts if not isinstance(m, Metric))
        return f"feature_distillation_layers names no layer of {self._host_name}. It has {some}."

    def extra_cost(self) -> Cost:
        return self._teacher_cost(FeatureDistillationMixin)._replace(memory="the layers' activations")

    def configure_model(self) -> None:
        """Makes the projectors. Not in ``__init__``: the teacher, whose widths they have, is loaded for training."""
        super().configure_model()
        training = self._trainer is not None and self._trainer.state.fn == "fit"
        on = self.feature_distillation_weight and self.feature_distillation_projector and self._has_teacher()
        if training and on and self._feature_pairs and self._projectors is None:
            teacher = self.teacher_module() or self  # an EMA teacher, copied after this, has the student's layers
            made = [
                make_projector(_layer(self, ours, "student"), _layer(teacher, theirs, "teacher"), ours, theirs)
                for ours, theirs in self._feature_pairs
            ]
            self.feature_distillation_projectors = nn.ModuleList(made)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """A state with projectors makes them: no teacher is needed to predict."""
        for name, module in list(self.named_modules()):  # an EMA teacher has its own
            if isinstance(module, FeatureDistillationMixin) and module._projectors is None:
                prefix = f"{name}." if name else ""
                if made := projectors_of(state_dict, f"{prefix}feature_distillation_projectors."):
                    module.feature_distillation_projectors = made
        return super().load_state_dict(state_dict, *args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self._feature_distillation_rests:
            return super().training_step(batch, batch_idx)
        layers = [_layer(self, ours, "student") for ours, _ in self._feature_pairs]
        try:
            with _recorded(self, layers) as self.__dict__["_student_features"]:
                return super().training_step(batch, batch_idx)
        finally:
            self.__dict__["_student_features"] = self.__dict__["_teacher_features"] = {}

    @property
    def _feature_distillation_rests(self) -> bool:
        """With projectors it does not: without gradients for them, at a scheduled weight of 0, DDP would wait."""
        return self.feature_distillation_weight == 0 and self._projectors is None

    def _teacher_watched(self) -> AbstractContextManager[Any]:
        return self._watch_teacher()

    @contextmanager
    def _watch_teacher(self) -> Iterator[None]:
        teacher = self.teacher_module()
        layers = [_layer(teacher, theirs, "teacher") for _, theirs in self._feature_pairs] if teacher else []
        with super()._teacher_watched(), _recorded(None, layers) as features:
            yield
        self.__dict__["_teacher_features"] = features

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = super().compute_loss(logits, target)
        if self._feature_distillation_rests or not self._is_taught("feature_distillation"):
            return loss
        self._teacher_answer()
        distances = [self._distance(place) for place in range(len(self._feature_pairs))]
        self.__dict__["_student_features"].clear()
        return self.add_term(
            "feature_distillation", loss, torch.stack(distances).mean(), self.feature_distillation_weight
        )

    def _distance(self, place: int) -> Tensor:
        name, other = self._feature_pairs[place]
        ours = _feature(self.__dict__["_student_features"], place, name, "student")
        theirs = _feature(self.__dict__["_teacher_features"], place, other, "teacher")
        if self.__dict__.get("_riders"):  # unlabelled inputs came along, behind the labelled ones
            ours = ours[: len(theirs)]
        projected = ours if self._projectors is None else self._projectors[place](ours)
        if projected.shape != theirs.shape:
            raise InvalidValueError(
                f"FeatureDistillationMixin: the student's layer {name!r} returns {list(ours.shape)}"
                f"{'' if projected is ours else f', projected {list(projected.shape)}'}, the teacher's {other!r} "
                f"{list(theirs.shape)}. Name layers of the same size in feature_distillation_layers"
                f"{', or set feature_distillation_projector=true.' if projected is ours else '.'}"
            )
        return feature_distance(projected, theirs.detach())


def _pairs(text: str | None) -> list[tuple[str, str]]:
    """``"a, b=c"`` as ``[("a", "a"), ("b", "c")]``."""
    pairs = []
    for part in text.split(",") if text else ():
        names = [name.strip() for name in part.split("=")]
        if len(names) > 2 or not all(names):
            raise InvalidValueError(
                f"feature_distillation_layers is {text!r}; write names of layers with commas between, such as "
                "'network.2, network.5=network.7': one name for both, or the student's=the teacher's."
            )
        pairs.append((names[0], names[-1]))
    return pairs


def _layer(network: nn.Module, name: str, whose: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        hint = did_you_mean(name, dict(network.named_modules()))
        raise InvalidValueError(
            f"feature_distillation_layers names {name!r}, which is no layer of the {whose}, a "
            f"{type(network).__name__}{hint}"
        ) from None


def _feature(features: Mapping[int, Any], place: int, name: str, whose: str) -> Tensor:
    feature = features.get(place)
    if not isinstance(feature, Tensor):
        what = "was not run" if place not in features else f"returned a {type(feature).__name__}"
        raise InvalidValueError(
            f"FeatureDistillationMixin: the {whose}'s layer {name!r} {what} in this step. Name a layer that its "
            "forward calls and that returns one tensor."
        )
    return feature


class _Record:
    """A forward hook that keeps what a layer returns first, but not within an attack."""

    def __init__(self, student: nn.Module | None, features: dict[int, Any], place: int) -> None:
        self.student, self.features, self.place = student, features, place

    def __call__(self, layer: nn.Module, args: Any, output: Any) -> None:
        if self.student is None or not in_inner_pass(self.student):
            self.features.setdefault(self.place, output)


@contextmanager
def _recorded(student: nn.Module | None, layers: list[nn.Module]) -> Iterator[dict[int, Any]]:
    """What the layers return within it, by their place."""
    features: dict[int, Any] = {}
    handles = [layer.register_forward_hook(_Record(student, features, place)) for place, layer in enumerate(layers)]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
