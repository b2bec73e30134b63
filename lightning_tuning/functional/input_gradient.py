"""Penalties on how fast a network's output changes with its input."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError

from .precision import at_least_float32, at_least_float32_dtype


def input_gradients(
    output: Tensor, inputs: list[Tensor], direction: Tensor | float = 1.0, scale: Tensor | float = 1.0
) -> list[Tensor]:
    """The gradient of ``sum(direction * output)`` with respect to each input, itself differentiable.

    Args:
        output: What was computed from the inputs, of any shape.
        inputs: Tensors that require grad.
        direction: What the gradient is seeded with, broadcast to the shape of ``output``.
        scale: Where the graph is of half precision, small gradients would underflow in it: the seed is multiplied by
            this and the result divided by it, in float32. The scale of a gradient scaler does; 1 for no scaling.

    Returns:
        The gradients in float32 (or float64), 0 for an input that the output does not depend on.

    Raises:
        InvalidValueError: The output depends on none of the inputs.

    Example:
        >>> x = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> input_gradients(x.square(), [x])[0].detach()
        tensor([2., 6.])
    """
    found: tuple[Tensor | None, ...] = ()
    if output.requires_grad:
        with torch.autocast(output.device.type, enabled=False):  # each step backwards in its own forward's precision
            seed = torch.as_tensor(direction * scale, device=output.device).to(output.dtype).expand_as(output)
            found = torch.autograd.grad(output, inputs, seed, create_graph=True, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise InvalidValueError(
            "The output does not depend on the inputs: it has no gradient with respect to them. Compute the logits "
            "from the x of the batch that training_step is given, without detach, a copy of its own or torch.no_grad."
        )
    return [
        torch.zeros_like(x, dtype=at_least_float32_dtype(x)) if g is None else at_least_float32(g) / scale
        for x, g in zip(inputs, found, strict=True)
    ]


def jacobian_penalty(logits: Tensor, inputs: list[Tensor], projections: int = 1, scale: Tensor | float = 1.0) -> Tensor:
    """An estimate of half the squared Frobenius norm of the Jacobian, the mean over the samples of
    ``||dz / dx||_F^2 / 2`` (Hoffman et al., 2019, algorithm 1).

    For a random v on the unit sphere of the C outputs, ``C * ||v^T dz/dx||^2`` has the squared norm as its mean. Each
    sample has its own v.

    Args:
        logits: The outputs ``[N, ...]``, computed from ``inputs``; C is the number of elements of one sample.
        inputs: What the samples were computed from, tensors ``[N, ...]`` that require grad.
        projections: How many directions are drawn and averaged over, at least 1.
        scale: See :func:`input_gradients`.

    Returns:
        A float32 (or float64) scalar, differentiable.

    Raises:
        InvalidValueError: The logits do not depend on the inputs.

    Example:
        >>> x = torch.randn(4, 3, requires_grad=True)
        >>> jacobian_penalty(5 * x.sum(1, keepdim=True), [x]).item()  # one output: v is 1 or -1, (25 + 25 + 25) / 2
        37.5
    """
    outputs = logits.reshape(len(logits), -1)  # one value a sample may come as [N]
    total = torch.zeros((), device=logits.device)
    for _ in range(projections):
        gradients = input_gradients(outputs, inputs, unit_vectors(outputs), scale)
        total = total + _squared_norms(gradients).mean()
    return outputs.shape[1] / (2 * projections) * total


def unit_vectors(like: Tensor) -> Tensor:
    """For each row of ``like`` ``[N, C]`` a random point on the unit sphere, in float32 or float64.

    Example:
        >>> unit_vectors(torch.zeros(2, 5)).square().sum(1)
        tensor([1.0000, 1.0000])
    """
    return torch.nn.functional.normalize(torch.randn_like(like, dtype=at_least_float32_dtype(like)), dim=1, eps=1e-30)


def gradient_penalty(gradients: list[Tensor], form: Literal["r1", "wgan_gp"] = "r1") -> Tensor:
    """The mean over the samples of a penalty on the norm of their input gradient.

    ``r1`` is ``||g||^2 / 2`` (Mescheder et al., 2018, equation 9; of a loss: Drucker & LeCun, 1992), ``wgan_gp`` is
    ``(||g|| - 1)^2`` (Gulrajani et al., 2017, equation 3). The norm is over all inputs and all their dimensions but the
    first; where it is 0 its gradient is taken as 0.

    Args:
        gradients: The gradient with respect to each input, tensors ``[N, ...]``.
        form: Which of the two.

    Returns:
        A scalar, differentiable.

    Example:
        >>> gradients = [torch.tensor([[3.0, 4.0], [0.0, 0.0]])]
        >>> gradient_penalty(gradients, "r1"), gradient_penalty(gradients, "wgan_gp")
        (tensor(6.2500), tensor(8.5000))
    """
    squares = _squared_norms(gradients)
    if form == "r1":
        return squares.mean() / 2
    # The root's gradient at 0 is infinite; that of the clamp below its bound is 0.
    norms = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    return (norms - 1).square().mean()


def interpolate(real: Tensor, fake: Tensor) -> Tensor:
    """A random point between each real sample and its fake one (Gulrajani et al., 2017, algorithm 1): where a critic's
    gradient is held at norm 1.

    Args:
        real: Samples ``[N, ...]``.
        fake: As many samples of the same shape.

    Returns:
        ``e * real + (1 - e) * fake`` with one e, uniform in [0, 1), for each sample.

    Raises:
        InvalidValueError: The shapes differ.

    Example:
        >>> interpolate(torch.ones(2, 3), torch.ones(2, 3))
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    if real.shape != fake.shape:
        raise InvalidValueError(
            f"interpolate takes real and fake samples of one shape, but they are {list(real.shape)} and "
            f"{list(fake.shape)}. Generate as many as there are real ones."
        )
    share = torch.rand(real.shape[0], *[1] * (real.ndim - 1), device=real.device, dtype=real.dtype)
    return torch.lerp(fake, real, share)


def _squared_norms(gradients: list[Tensor]) -> Tensor:
    """``[N]``: the squared norm of each sample's gradient, over all tensors."""
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients]
    return torch.stack(squares).sum(0)
