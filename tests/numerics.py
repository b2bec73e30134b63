"""The formulas again, in numpy and float64 and written out: what the tests compare with."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def array(values: Tensor) -> np.ndarray:
    """Float64 values of a tensor."""
    return values.detach().double().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over axis 1 of ``[N, C, ...]``."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def one_hot(ids: np.ndarray, num_classes: int) -> np.ndarray:
    """``[N, ...]`` ids as ``[N, C, ...]``."""
    return np.moveaxis(np.eye(num_classes)[ids], -1, 1)


def cross_entropy(logits: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over all positions of ``-sum_c y_c log p_c``."""
    return float(-(probabilities * np.log(softmax(logits))).sum(axis=1).mean())


def kl(p_logits: np.ndarray, q_logits: np.ndarray) -> float:
    """Mean over all positions of ``sum_c p_c log(p_c / q_c)``."""
    p, q = softmax(p_logits), softmax(q_logits)
    return float((p * np.log(p / q)).sum(axis=1).mean())


def ema(average: np.ndarray, current: np.ndarray, update: int, decay: float, warmup: bool) -> np.ndarray:
    """The moving average after its ``update``-th update, counted from 1."""
    if warmup:
        decay = min(1 - 1 / (update + 1), decay)
    return decay * average + (1 - decay) * current
