"""AugMix: a mixture of differently augmented versions of one image."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from lightning_tuning.data.pipeline import Transform
from lightning_tuning.errors import InvalidValueError, check_count, check_range

_DEEPEST = 3


class AugMix:
    """``(1 - m) x + m sum_i w_i chain_i(x)``, rounded to whole grey levels.

    Each chain applies one to three operations, drawn with replacement; ``w`` comes from a Dirichlet distribution, ``m``
    from Beta(alpha, alpha). The divergence between the predictions for several views, which the paper trains with, is
    not part of it.

    Args:
        operations: What the chains draw from; they keep the image's size.
        width: Number of chains, at least 1.
        alpha: Of both distributions, above 0. Small: nearly one chain, or nearly the image itself; large: nearly equal
            shares.

    Raises:
        InvalidValueError: An argument is outside its range.

    Source:
        Hendrycks et al., 2020, "AugMix", algorithm 1.
    """

    def __init__(self, operations: Sequence[Transform], width: int = 3, alpha: float = 1.0) -> None:
        check_count("width", width, 1)
        check_range("alpha", alpha, open_low=True)
        if not operations:
            raise InvalidValueError("AugMix has no operations; give it at least one.")
        self.operations = list(operations)
        self.width = width
        self.alpha = alpha
        self.set_random_state(np.random.default_rng(), random.Random())

    def set_random_state(self, numpy_random: np.random.Generator, python_random: random.Random, /) -> None:
        """Draw from these generators from now on."""
        self._numpy_random = numpy_random
        self._python_random = python_random
        for operation in self.operations:
            operation.set_random_state(numpy_random, python_random)

    def __call__(self, *, image: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Mix; ``image`` is uint8 ``[H, W, C]``."""
        if mask is not None:
            raise InvalidValueError("AugMix adds up differently moved images, so no mask fits the sum. Leave it out.")
        shares = self._numpy_random.dirichlet([self.alpha] * self.width)
        mixed_share = self._numpy_random.beta(self.alpha, self.alpha)
        mixture = (1 - mixed_share) * image
        for share in shares:
            mixture += mixed_share * share * self._chain(image)
        return {"image": np.rint(mixture).astype(np.uint8)}

    def _chain(self, image: np.ndarray) -> np.ndarray:
        for _ in range(self._python_random.randint(1, _DEEPEST)):
            image = self._python_random.choice(self.operations)(image=image)["image"]
        return image
