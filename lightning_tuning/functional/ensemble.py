"""What several networks predict together, and how good and how honest a prediction of classes is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import at_least_float32

BINS = 15


def ensemble_logits(outputs: Tensor, task: str = "multiclass") -> Tensor:
    """Outputs that stand for the mean prediction of several networks.

    Probabilities are averaged, not logits: a network that is sure does not outvote the others by the size of its
    logits.

    Args:
        outputs: The networks' outputs, ``[M, N, C, ...]``.
        task: ``multiclass``: returns the logarithm of the mean of the softmax probabilities, whose softmax they are;
            ``multilabel``: the log odds of the mean of the sigmoid probabilities; ``regression``: the mean.

    Returns:
        ``[N, C, ...]``, at least float32.

    Source: Lakshminarayanan, Pritzel & Blundell, 2017, "Simple and scalable predictive uncertainty estimation using
    deep ensembles", section 2.4.

    Example:
        >>> sure, unsure = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> ensemble_logits(torch.stack([sure, unsure])).softmax(1)
        tensor([[0.6345, 0.3655]])
    """
    outputs = at_least_float32(outputs)
    if task == "regression":
        return outputs.mean(0)
    if task == "multilabel":
        return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)
    return outputs.log_softmax(2).logsumexp(0) - math.log(len(outputs))


def prediction_sums(logits: Tensor, target: Tensor, bins: int = BINS) -> Tensor:
    """Sums over samples from which :func:`prediction_quality` takes its means; those of several batches add up.

    Args:
        logits: ``[N, C]``.
        target: Ids ``[N]``, or probabilities ``[N, C]``, of which the largest counts as the class.
        bins: Bins of equal width for the confidence.

    Returns:
        ``[4 + 3 * bins]``, float64: the numbers of samples and of right ones, the sums of the negative log likelihood
        and of the Brier score, and for each bin the number of samples, their confidence and the right ones.
    """
    if target.is_floating_point():
        target = target.argmax(1)
    log_probabilities = logits.double().log_softmax(1)
    probabilities = log_probabilities.exp()
    confidence, predicted = probabilities.max(1)
    right = (predicted == target).double()
    nll = -log_probabilities.gather(1, target[:, None])[:, 0]
    brier = (probabilities - F.one_hot(target, logits.shape[1])).square().sum(1)
    sums = torch.stack([torch.ones_like(right), right, nll, brier]).sum(1)
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    per_bin = torch.stack([torch.ones_like(right), confidence, right]).new_zeros(3, bins)
    per_bin.index_add_(1, bin_of, torch.stack([torch.ones_like(right), confidence, right]))
    return torch.cat([sums, per_bin.flatten()])


def prediction_quality(sums: Tensor) -> dict[str, float]:
    """Accuracy, negative log likelihood, Brier score and expected calibration error from :func:`prediction_sums`.

    The Brier score is summed over the classes, from 0 to 2. The calibration error is the mean over the samples of the
    difference between the confidence and the accuracy of their bin (Guo et al., 2017).

    Example:
        >>> sums = prediction_sums(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
        >>> {name: round(value, 3) for name, value in prediction_quality(sums).items()}
        {'accuracy': 0.5, 'nll': 0.72, 'brier': 0.549, 'calibration_error': 0.425}
    """
    count, right, nll, brier = sums[:4].tolist()
    _, confidence, accuracy = sums[4:].view(3, -1)
    return {
        "accuracy": right / count,
        "nll": nll / count,
        "brier": brier / count,
        "calibration_error": (confidence - accuracy).abs().sum().item() / count,
    }
