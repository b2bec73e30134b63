"""What the techniques that train on adversarial inputs share: their attack, its arguments and its units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range, warn_of_reach
from lightning_tuning.functional import (
    Norm,
    PixelScale,
    Start,
    default_step_size,
    in_pixels,
    perturbation_norms,
    projected_ascent,
    start_of,
)
from lightning_tuning.functional.normalizing import NormalizedBefore
from lightning_tuning.functional.precision import at_least_float32

from .inner_pass import inner_pass
from .input_gradient import gradient_scale
from .perturbable import Perturbable

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attack:
    """A search for the perturbation, within a ball around each sample, that raises an objective most.

    Example:
        >>> from types import SimpleNamespace
        >>> settings = {"epsilon": 0.03, "steps": 10, "step_size": None, "norm": "linf"}
        >>> module = SimpleNamespace(**{f"trades_{name}": value for name, value in settings.items()})
        >>> Attack.of(module, "trades", "gaussian")
        Attack(epsilon=0.03, steps=10, step_size=0.0075, norm='linf', start='gaussian', evaluate=True)
    """

    epsilon: float
    """Radius, in pixels of [0, 1] where the inputs' scale is known (:func:`scales_of`), else in the inputs' unit."""
    steps: int
    step_size: float
    norm: Norm = "linf"
    start: Start = "uniform"
    evaluate: bool = True
    """Whether the network is attacked in evaluation mode."""

    @classmethod
    def of(cls, module: Any, stem: str, start: Start, *, steps: int | None = None, evaluate: bool = True) -> Attack:
        """The attack of a technique, by its arguments ``<stem>_epsilon`` (>= 0), ``<stem>_steps``, ``<stem>_step_size``
        (None: :func:`~lightning_tuning.functional.default_step_size`) and ``<stem>_norm`` as the module has them now: a
        schedule may change them.

        Args:
            module: The LightningModule.
            stem: The technique's.
            start: Where the search begins.
            steps: Number of gradients, for a technique without that argument.
            evaluate: Whether the network is attacked in evaluation mode.

        Raises:
            InvalidValueError: A value is not allowed.
        """
        epsilon, step_size = getattr(module, f"{stem}_epsilon"), getattr(module, f"{stem}_step_size")
        norm, count = getattr(module, f"{stem}_norm"), steps or getattr(module, f"{stem}_steps")
        check_range(f"{stem}_epsilon", epsilon)
        check_count(f"{stem}_steps", count, 1)
        if step_size is not None:
            check_range(f"{stem}_step_size", step_size, open_low=True)
        check_choice(f"{stem}_norm", norm, ("linf", "l2"))
        size = default_step_size(epsilon, count, start) if step_size is None else step_size
        return cls(epsilon, count, size, norm, start, evaluate)

    def perturb(self, module: Any, spot: Perturbable, objective: Objective) -> list[Tensor]:
        """The perturbation of ``spot.clean``, detached, in the unit of the inputs.

        Nothing of it is left behind, but for the random numbers of a random start.

        Args:
            module: The LightningModule.
            spot: The inputs.
            objective: Gives, for logits, the sum over the samples of what is to rise.

        Raises:
            InvalidValueError: The objective does not depend on the inputs.
        """
        scales = self.scales(module, spot)
        # Drawn before the inner pass, which puts the generators back: dropout would draw the same numbers again.
        start = start_of(spot.clean, self.epsilon, self.norm, self.start)
        with inner_pass(module, evaluate=self.evaluate), NormalizedBefore(module, spot.technique):
            return projected_ascent(
                spot.clean,
                start,
                lambda delta: _gradient(module, spot, delta, objective),
                epsilon=self.epsilon,
                steps=self.steps,
                step_size=self.step_size,
                norm=self.norm,
                scales=scales,
                project_start=not (self.steps == 1 and self.start == "uniform"),
            )

    def scales(self, module: Any, spot: Perturbable) -> list[PixelScale | None]:
        """:func:`scales_of`; warns, once, of an epsilon in pixels that holds every image."""
        scales = scales_of(module, spot)
        if any(scales) and not module.__dict__.get("_told_reach"):
            module.__dict__["_told_reach"] = True
            warn_of_reach(spot.technique, self.epsilon, self.norm)
        return scales

    def size(self, module: Any, spot: Perturbable, delta: list[Tensor]) -> Tensor:
        """The mean over the samples of the perturbation's norm, in the unit of epsilon: a scalar."""
        return perturbation_norms(in_pixels(delta, scales_of(module, spot)), self.norm).mean()


def _gradient(module: Any, spot: Perturbable, delta: list[Tensor], objective: Objective) -> list[Tensor]:
    points = [d.detach().requires_grad_() for d in delta]
    value = objective(spot.logits(points))
    found: tuple[Tensor | None, ...] = ()
    if value.requires_grad:
        with torch.autocast(value.device.type, enabled=False):  # each step backwards in its own forward's precision
            # In half precision small gradients would be 0.
            scaled = value * gradient_scale(module, len(points[0]))
            found = torch.autograd.grad(scaled, points, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise InvalidValueError(
            f"{spot.technique} attacks the inputs, but the output has no gradient with respect to them. Compute the "
            "logits in forward(x) from x, without detach or torch.no_grad."
        )
    return [torch.zeros_like(p) if g is None else g for p, g in zip(points, found, strict=True)]


def scales_of(module: Any, spot: Perturbable) -> list[PixelScale | None]:
    """How each of the inputs was made of pixels in [0, 1]: by the ``mean`` and ``std`` of the module's attribute
    ``normalize`` or, without one, of the datamodule's.

    None for what is no image of as many channels, for embeddings, and where neither is known: epsilon is then in the
    unit of the input, and nothing is clipped to a range. That is said once.

    Raises:
        InvalidValueError: Images have another number of channels than ``normalize``.
    """
    scale = pixel_scale(module)
    scales = [scale if scale is not None and not spot.embedded and scale.fits(x) else None for x in spot.clean]
    for x, own in zip(spot.clean, scales, strict=True):
        if scale is not None and own is None and x.ndim == 4 and not spot.embedded:
            raise InvalidValueError(
                f"{spot.technique}: normalize has {len(scale.mean)} channels, but the images are {list(x.shape)}. Set "
                f"self.normalize, with one mean and std for each channel, in {type(module).__name__}."
            )
    if None in scales and not module.__dict__.get("_told_units"):
        module.__dict__["_told_units"] = True
        rank_zero_info(
            f"{spot.technique}: epsilon has the unit of the {'embeddings' if spot.embedded else 'inputs'}, which are "
            "not clipped to a range. For epsilon in pixels of [0, 1] set self.normalize, in the module or datamodule, "
            "to an object with the mean and std of each channel (0 and 1 for inputs that are not normalised)."
        )
    return scales


def pixels_of(spot: Perturbable, scales: list[PixelScale | None]) -> list[Tensor | None]:
    """The clean inputs as pixels, where their scale is known."""
    return [None if s is None else s.pixels(at_least_float32(x)) for s, x in zip(scales, spot.clean, strict=True)]


def pixel_scale(module: Any) -> PixelScale | None:
    """The scale of the module's or the datamodule's ``normalize``."""
    trainer = module._trainer
    datamodule = None if trainer is None else getattr(trainer, "datamodule", None)
    return PixelScale.of(getattr(module, "normalize", None)) or PixelScale.of(getattr(datamodule, "normalize", None))


def log_adversarial(module: Any, stem: str, logits: Tensor, target: Tensor, loss_too: bool = False) -> None:
    """Record how the network does on adversarial inputs: ``train/<stem>_accuracy``, and their cross entropy as
    ``train/<stem>``.

    Args:
        module: The LightningModule.
        stem: The technique's.
        logits: ``[N, C, ...]`` of adversarial inputs.
        target: Class ids, negative where nothing counts, or probabilities.
        loss_too: Whether to record the cross entropy.
    """
    logits = logits.detach().float()
    labels = target.argmax(1) if target.is_floating_point() else target
    counts = labels >= 0
    right = (logits.argmax(1) == labels) & counts
    module.log_term(f"{stem}_accuracy", right.sum() / counts.sum().clamp(min=1))
    if loss_too:
        module.log_term(stem, F.cross_entropy(logits, target))
