"""Text augmentations driven by one seed for each call, and the named ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_tuning.data.synonyms import Synonyms
from lightning_tuning.data.text_transforms import (
    OneOf,
    RandomDeletion,
    RandomInsertion,
    RandomSwap,
    SentenceShuffle,
    SynonymReplacement,
    TextTransform,
    TokenDropout,
)
from lightning_tuning.errors import check_choice

TEXT_PIPELINES = ("none", "weak", "strong")


class TextPipeline:
    """Applies transforms one after the other; the result is a function of text and seed.

    Args:
        transforms: The transforms, in order. Empty: the text stays as it is.
        salt: Makes two pipelines draw different numbers from the same seed, 0 to 2**64 - 1.

    Example:
        >>> pipeline = TextPipeline([RandomSwap()])
        >>> pipeline("one two", seed=5)
        'two one'
    """

    def __init__(self, transforms: Sequence[TextTransform], salt: int = 0) -> None:
        self.transforms = list(transforms)
        self.salt = salt
        self._rng = np.random.Generator(np.random.Philox(key=0))
        self._state = self._rng.bit_generator.state

    def __call__(self, text: str, seed: int) -> str:
        """Transform ``text`` with the random numbers of ``seed``, 0 to 2**64 - 1."""
        # Writing the key of a counter-based generator is faster than seeding a new one. It is reached through the
        # Generator: NumPy before 2.0 unpickles one with a bit generator of its own.
        self._state["state"]["key"][:] = seed, self.salt
        self._rng.bit_generator.state = self._state
        for transform in self.transforms:
            text = transform(text, self._rng)
        return text


def named_text_transforms(name: str, synonyms: Synonyms | None = None) -> list[TextTransform]:
    """The list of transforms called ``name``.

    - ``none``: no augmentation.
    - ``weak``: one of EDA's operations, chosen at random, with a share of 0.1.
    - ``strong``: all of them one after the other, behind a shuffle of the sentences and with ``<unk>`` in place of
      some words, for the strong view of a consistency loss. UDA (Xie et al., 2020) translates back and forth or
      replaces words of low tf-idf instead.

    Args:
        name: 'none', 'weak' or 'strong'.
        synonyms: Each word's synonyms. None: the lists go without what needs them.

    Raises:
        InvalidValueError: There is no list of that name, or the synonyms are no such table.

    Example:
        >>> [type(transform).__name__ for transform in named_text_transforms("strong")]
        ['SentenceShuffle', 'RandomSwap', 'RandomDeletion', 'TokenDropout']
    """
    check_choice("name", name, TEXT_PIPELINES)
    if name == "none":
        return []
    needs_table: list[TextTransform] = []
    if name == "weak":
        if synonyms is not None:
            needs_table = [SynonymReplacement(synonyms), RandomInsertion(synonyms)]
        return [OneOf([*needs_table, RandomSwap(), RandomDeletion()])]
    if synonyms is not None:
        needs_table = [SynonymReplacement(synonyms, 0.3), RandomInsertion(synonyms)]
    return [SentenceShuffle(), *needs_table, RandomSwap(0.2), RandomDeletion(), TokenDropout()]
