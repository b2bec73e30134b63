"""Adversarial perturbations: projected gradient ascent within a ball around the inputs.

The inputs are a list of tensors ``[N, ...]`` of any rank; a sample is what stands at one index of all of them, and its
L2 norm is that of all its elements together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_tuning.errors import InvalidValueError

from .precision import at_least_float32, at_least_float32_dtype
from .samples import largest_elements, of_samples, sample_norms, unit_samples

Norm = Literal["linf", "l2"]
Start = Literal["clean", "uniform", "gaussian"]
_GAUSSIAN = 0.001


class PixelScale(NamedTuple):
    """How inputs were made of pixels in [0, 1]: ``(pixel - mean) / std``, channels standing in dimension 1.

    Example:
        >>> scale = PixelScale((0.5,), (0.25,))
        >>> scale.pixels(torch.tensor([[-2.0, 2.0]])), scale.change(torch.tensor([[0.1]]))
        (tensor([[0., 1.]]), tensor([[0.4000]]))
    """

    mean: tuple[float, ...]
    """Of each channel, or one value for all."""
    std: tuple[float, ...]
    """As many."""

    @classmethod
    def of(cls, normalize: Any) -> PixelScale | None:
        """The scale in the attributes ``mean`` and ``std`` of an object, numbers or sequences; None without them.

        Raises:
            InvalidValueError: They do not fit together, or ``normalize`` is a bare tuple, list or dict.
        """
        if isinstance(normalize, (tuple, list, dict)):
            raise InvalidValueError(
                f"normalize is {normalize!r}; it must be an object with the attributes mean and std, such as "
                "lightning_tuning.functional.PixelScale((0.5,), (0.25,))."
            )
        mean, std = (getattr(normalize, name, None) for name in ("mean", "std"))
        if mean is None or std is None or callable(mean) or callable(std):
            return None
        scale = cls(*(tuple(torch.as_tensor(v, dtype=torch.float64).flatten().tolist()) for v in (mean, std)))
        if len(scale.mean) != len(scale.std) or not min(scale.std, default=0) > 0:
            raise InvalidValueError(
                f"normalize has mean {mean} and std {std}; it must have one mean and one std above 0 for each channel."
            )
        return scale

    def fits(self, x: Tensor) -> bool:
        """Whether ``x`` ``[N, C, ...]`` has as many channels."""
        return len(self.mean) == 1 or (x.ndim > 1 and x.shape[1] == len(self.mean))

    def pixels(self, x: Tensor) -> Tensor:
        """Inputs as pixels."""
        return x * self._for(self.std, x) + self._for(self.mean, x)

    def change(self, delta: Tensor) -> Tensor:
        """A change of pixels as a change of inputs."""
        return delta / self._for(self.std, delta)

    @staticmethod
    def _for(values: tuple[float, ...], like: Tensor) -> Tensor:
        shape = (-1, *[1] * (like.ndim - 2)) if like.ndim > 1 else (-1,)
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(shape)


def perturbation_norms(delta: list[Tensor], norm: Norm) -> Tensor:
    """The norm of each sample's perturbation, over all tensors: ``[N]`` in float32 or float64.

    Example:
        >>> perturbation_norms([torch.tensor([[3.0]]), torch.tensor([[[-4.0]]])], "l2")
        tensor([5.])
    """
    return largest_elements(delta) if norm == "linf" else sample_norms(delta)


def project(delta: list[Tensor], epsilon: float, norm: Norm, pixels: list[Tensor | None]) -> list[Tensor]:
    """The nearest point in the ball of radius ``epsilon``, then the nearest at which pixels are in [0, 1].

    Args:
        delta: The perturbation, tensors ``[N, ...]``.
        epsilon: Radius of each sample's ball, >= 0.
        norm: ``linf``: the largest element, ``l2``: the Euclidean norm.
        pixels: For each tensor the pixels that the perturbation is added to, or None where there is no range. A pixel
            that lies outside of [0, 1] may stay where it is, so that the result is in the ball too.

    Returns:
        The projected perturbation.

    Example:
        >>> project([torch.tensor([[0.5, -0.5]])], 0.3, "linf", [torch.tensor([[0.9, 0.2]])])
        [tensor([[ 0.1000, -0.2000]])]
    """
    if norm == "linf":
        delta = [d.clamp(-epsilon, epsilon) for d in delta]
    else:
        norms = perturbation_norms(delta, norm)
        delta = _times(torch.where(norms > epsilon, epsilon / norms, 1.0), delta)
    return [
        d if p is None else torch.minimum(torch.maximum(d, (0 - p).clamp_max(0)), (1 - p).clamp_min(0))
        for d, p in zip(delta, pixels, strict=True)
    ]


def ascent_direction(gradients: list[Tensor], norm: Norm) -> list[Tensor]:
    """The direction of length 1 in which each sample's objective rises fastest: the gradient's sign for ``linf``, the
    gradient divided by the sample's own norm for ``l2``.

    The scale of a sample's gradient cancels, also where its square would underflow. A sample whose gradient is 0 or not
    finite gets 0.

    Example:
        >>> gradients = [torch.tensor([[3e-30, -4e-30]])]
        >>> ascent_direction(gradients, "l2"), ascent_direction(gradients, "linf")
        ([tensor([[ 0.6000, -0.8000]])], [tensor([[ 1., -1.]])])
    """
    if norm == "l2":
        return unit_samples(gradients)
    usable = largest_elements(gradients).isfinite()
    return [torch.where(of_samples(usable, g), at_least_float32(g).sign(), 0.0) for g in gradients]


def start_of(like: list[Tensor], epsilon: float, norm: Norm, start: Start) -> list[Tensor]:
    """Where the ascent begins, in float32 or float64.

    Args:
        like: The inputs: shapes and devices.
        epsilon: Radius of the ball.
        norm: Its norm.
        start: ``clean``: 0; ``uniform``: uniform in the ball; ``gaussian``: normal with standard deviation 0.001, which
            only leaves the clean point (TRADES).

    Returns:
        The perturbation, one tensor for each of ``like``; not projected onto the range of pixels.

    Example:
        >>> start_of([torch.ones(1, 2)], 0.1, "linf", "clean")
        [tensor([[0., 0.]])]
    """
    zeros = [torch.zeros_like(x, dtype=at_least_float32_dtype(x), requires_grad=False) for x in like]
    if start == "clean":
        return zeros
    if start == "uniform" and norm == "linf":
        return [z.uniform_(-epsilon, epsilon) for z in zeros]
    normal = [z.normal_() for z in zeros]
    if start == "gaussian":
        return [z.mul_(_GAUSSIAN) for z in normal]
    # A point of the ball: a random direction, at a distance whose d-th power is uniform.
    size = sum(z[0].numel() for z in normal)
    radius = epsilon * torch.rand(len(like[0]), device=like[0].device, dtype=normal[0].dtype) ** (1 / size)
    return _times(radius / perturbation_norms(normal, "l2"), normal)


def error_odds(logits: Tensor, target: Tensor) -> Tensor:
    """What an attack on labels raises: the sum over the samples of a loss that rises with the cross entropy.

    For class ids ``[N]`` it is the logarithm of the odds against the label, ``m = log(p(other) / p(label))``. The cross
    entropy is ``log(1 + exp(m))``: sample by sample its gradient is a positive multiple of that of m, and where only
    the direction counts the ascents are the same. But where a network is sure the cross entropy's gradient rounds to 0
    and the attack would stop, which looks like robustness. For all other targets it is the cross entropy.

    Args:
        logits: ``[N, C, ...]``.
        target: Class ids ``[N]`` or ``[N, ...]``, negative where nothing counts, or probabilities ``[N, C, ...]``.

    Example:
        >>> error_odds(torch.tensor([[300.0, 0.0]]), torch.tensor([0]))
        tensor(-300.)
    """
    logits = at_least_float32(logits)
    if target.is_floating_point() or target.ndim > 1:
        return F.cross_entropy(logits, target, reduction="sum")
    counts, label = target >= 0, target.clamp_min(0)[:, None]
    others = logits.scatter(1, label, float("-inf")).logsumexp(1)
    return torch.where(counts, others - logits.gather(1, label)[:, 0], 0.0).sum()


def default_step_size(epsilon: float, steps: int, start: Start) -> float:
    """The length of a step where none is given.

    ``epsilon`` for one step from the clean point (FGSM: Goodfellow et al., 2015), 1.25 ``epsilon`` for one step from a
    random one (Wong et al., 2020), else 2.5 ``epsilon / steps``, with which the ascent reaches the edge from anywhere
    and can move along it (Madry et al., 2018).

    Example:
        >>> [default_step_size(0.3, steps, start) for steps, start in [(1, "clean"), (1, "uniform"), (50, "clean")]]
        [0.3, 0.375, 0.015]
    """
    if steps == 1:
        return epsilon if start == "clean" else 1.25 * epsilon
    return 2.5 * epsilon / steps


def projected_ascent(
    inputs: list[Tensor],
    delta: list[Tensor],
    gradient: Callable[[list[Tensor]], list[Tensor]],
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    norm: Norm = "linf",
    scales: list[PixelScale | None] | None = None,
    project_start: bool = True,
) -> list[Tensor]:
    """Perturbations that raise an objective: ``steps`` times ``delta <- project(delta + step_size * direction)``.

    One step from the clean point is FGSM (Goodfellow et al., 2015), several are PGD.

    Args:
        inputs: The clean inputs, floating tensors ``[N, ...]``.
        delta: The start, see :func:`start_of`, in the unit of ``epsilon``.
        gradient: Gives the gradient of the objective with respect to the inputs at ``inputs + delta``, for a ``delta``
            in the unit and of the dtypes of the inputs. A positive factor of a sample's gradient cancels.
        epsilon: Radius of each sample's ball, >= 0, in pixels where there is a scale, else in the inputs' unit.
        steps: Number of gradients, >= 0; 0 gives the start.
        step_size: Length of a step, > 0, in the unit of ``epsilon``.
        norm: The ball's norm.
        scales: For each input how it was made of pixels, or None: then epsilon is in its own unit and it has no range.
        project_start: Whether the start is projected too, as in PGD. With one step from a random point it is not (Wong
            et al., 2020, algorithm 3): images of black and white pixels would lose half of the randomness, and the
            training its protection from catastrophic overfitting.

    Returns:
        The perturbation in the unit and the dtypes of the inputs.

    Source: Madry et al., 2018, "Towards deep learning models resistant to adversarial attacks", section 2.1.

    Example:
        >>> x, w = torch.tensor([[0.2, 0.5]]), torch.tensor([[3.0, -0.1]])
        >>> start = start_of([x], 0.3, "linf", "clean")
        >>> projected_ascent([x], start, lambda delta: [w], epsilon=0.3, steps=5, step_size=0.1)
        [tensor([[ 0.3000, -0.3000]])]
    """
    scales = scales or [None] * len(inputs)
    pixels = [None if s is None else s.pixels(at_least_float32(x)) for s, x in zip(scales, inputs, strict=True)]
    if project_start or steps == 0:
        delta = project(delta, epsilon, norm, pixels)
    for _ in range(steps):
        found = [at_least_float32(g) for g in gradient(in_inputs(delta, inputs, scales))]
        # One pixel is 1 / std of an input, and so is its gradient.
        found = [g if s is None else s.change(g) for s, g in zip(scales, found, strict=True)]
        moved = [torch.add(d, g, alpha=step_size) for d, g in zip(delta, ascent_direction(found, norm), strict=True)]
        delta = project(moved, epsilon, norm, pixels)
    return in_inputs(delta, inputs, scales)


def in_inputs(delta: list[Tensor], inputs: list[Tensor], scales: list[PixelScale | None]) -> list[Tensor]:
    """A perturbation of pixels in the unit and dtype of the inputs."""
    return [(d if s is None else s.change(d)).to(x.dtype) for d, x, s in zip(delta, inputs, scales, strict=True)]


def in_pixels(delta: list[Tensor], scales: list[PixelScale | None]) -> list[Tensor]:
    """A perturbation of the inputs in pixels, where their scale is known."""
    return [
        at_least_float32(d) if s is None else at_least_float32(d) * s._for(s.std, at_least_float32(d))
        for d, s in zip(delta, scales, strict=True)
    ]


def _times(factors: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return [t * of_samples(factors, t).to(t.dtype) for t in tensors]
