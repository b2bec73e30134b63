"""Augmentations of texts, word by word, whose random numbers come from outside.

The four operations of EDA (Wei & Zou, 2019) and two more. Words are those of :mod:`lightning_tuning.data.words`: the
signs and the white space between them stay where they are, and words keep their letters. A text that has a word keeps
one.

Source:
    Wei & Zou, 2019, "EDA: Easy data augmentation techniques for boosting performance on text classification tasks".
    n = max(1, floor(share * number of words)), as in its code. It has a list of stop words, which are not replaced;
    here they are the words that the table of synonyms leaves out. It takes case and all signs out of the texts first;
    here they stay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lightning_tuning.data.synonyms import Synonyms, check_synonyms, in_case_of
from lightning_tuning.data.words import UNK, join_words, normalize, split_words
from lightning_tuning.errors import InvalidValueError, check_range


class TextTransform(Protocol):
    """What makes another text of a text; all its random numbers come from ``rng``."""

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """The new text."""


class SynonymReplacement:
    """Replaces n words that have synonyms by one of them, in the word's case.

    Each place in the text counts by itself; EDA's code replaces all places of a chosen word by the same synonym.

    Args:
        table: Each word's synonyms.
        share: n for each word of the text, 0 to 1; 0: off. EDA proposes 0.05 to 0.1.

    Example:
        >>> SynonymReplacement({"car": ["automobile"]})("A red Car.", np.random.default_rng(0))
        'A red Automobile.'
    """

    def __init__(self, table: Synonyms, share: float = 0.1) -> None:
        check_range("share", share, 0, 1)
        self.table = check_synonyms(table)
        self.share = share

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        words, gaps = split_words(text)
        keys = _keys(words, self.table)
        for place in _order(len(keys), rng)[: _count(self.share, words)]:
            index, synonyms = keys[place]
            words[index] = in_case_of(words[index], synonyms[_below(len(synonyms), rng)])
        return join_words(words, gaps)


class RandomInsertion:
    """Inserts, n times, a synonym of a random word of the text at a random place.

    Every synonym and every place, the end included, is as likely; EDA's code takes the first synonym, never inserts
    behind the last word, and draws also from the words inserted before.

    Args:
        table: Each word's synonyms.
        share: n for each word of the text, 0 to 1; 0: off. EDA proposes 0.05 to 0.1.
    """

    def __init__(self, table: Synonyms, share: float = 0.1) -> None:
        check_range("share", share, 0, 1)
        self.table = check_synonyms(table)
        self.share = share

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        words, gaps = split_words(text)
        keys = _keys(words, self.table)
        for _ in range(_count(self.share, words) if keys else 0):
            _, synonyms = keys[_below(len(keys), rng)]
            place = _below(len(words) + 1, rng)
            words.insert(place, synonyms[_below(len(synonyms), rng)])
            # A space behind the new word, or before it where it is the last one, so that a full stop stays the end.
            gaps.insert(place + (place < len(words) - 1), " ")
        return join_words(words, gaps)


class RandomSwap:
    """Exchanges, n times, two random words, which are never the same place.

    Args:
        share: n for each word of the text, 0 to 1; 0: off. EDA proposes 0.05 to 0.1.
    """

    def __init__(self, share: float = 0.1) -> None:
        check_range("share", share, 0, 1)
        self.share = share

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        words, gaps = split_words(text)
        for _ in range(_count(self.share, words) if len(words) > 1 else 0):
            first, second = _below(len(words), rng), _below(len(words) - 1, rng)
            second += second >= first
            words[first], words[second] = words[second], words[first]
        return join_words(words, gaps)


class RandomDeletion:
    """Takes out each word with a probability; if none were left, a random one stays.

    The white space before a word goes with it; signs stay.

    Args:
        share: The probability, 0 to 1; 0: off. EDA proposes 0.05 to 0.1.
    """

    def __init__(self, share: float = 0.1) -> None:
        check_range("share", share, 0, 1)
        self.share = share

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        words, gaps = split_words(text)
        gone = _chosen(self.share, words, rng)
        if not any(gone):
            return text
        kept, between = [], [gaps[0]]
        for word, gap, out in zip(words, gaps[1:], gone, strict=True):
            if not out:
                kept.append(word)
                between.append(gap)
            else:
                between[-1] = between[-1].rstrip() + gap
        if gone[0]:
            between[0] = text[: len(text) - len(text.lstrip())] + between[0].lstrip()
        return join_words(kept, between)


class TokenDropout:
    """Replaces each word by ``<unk>`` with a probability; if none were left, a random one stays.

    It is the word dropout of Bowman et al., 2016, "Generating sentences from a continuous space", on the input of a
    classifier.

    Args:
        share: The probability, 0 to 1; 0: off.
    """

    def __init__(self, share: float = 0.1) -> None:
        check_range("share", share, 0, 1)
        self.share = share

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        words, gaps = split_words(text)
        gone = _chosen(self.share, words, rng)
        return join_words([UNK if out else word for word, out in zip(words, gone, strict=True)], gaps)


class SentenceShuffle:
    """Puts the sentences into a random order; the white space between them stays, or is a space if there is none.

    A sentence ends at a line break, at ``.``, ``!``, ``?`` or an ellipsis, with closing quotes and brackets, if white
    space follows, or at a full stop of Chinese or Japanese. Abbreviations are not known: ``Dr. No`` is two sentences.
    """

    _sentence = re.compile(
        r"""\S.*?(?:(?<![.!?…])[.!?…]+["'”’»)\]]*(?=\s|\Z)|[。！？]+[”’」』）]*|(?=[\r\n])|\Z)""", re.DOTALL
    )

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        body = text.rstrip()
        matches = list(self._sentence.finditer(body))
        order = _order(len(matches), rng)
        pieces: list[str] = []
        end = 0
        for place, match in zip(order, matches, strict=True):
            # A sentence that has no end of its own, the last one, must not grow together with the next.
            pieces += [text[end : match.start()] or " " * bool(pieces), matches[place][0]]
            end = match.end()
        return "".join([*pieces, text[end:]])


class OneOf:
    """Applies one of several transforms, chosen at random, as EDA does with its four.

    Args:
        transforms: The transforms, at least one.
    """

    def __init__(self, transforms: Sequence[TextTransform]) -> None:
        self.transforms = list(transforms)
        if not self.transforms:
            raise InvalidValueError("OneOf has no transforms; give it at least one.")

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        return self.transforms[_below(len(self.transforms), rng)](text, rng)


def _count(share: float, words: Sequence[str]) -> int:
    """EDA's n. The tiny summand is for 0.29 * 100 = 28.999999999999996."""
    return max(1, math.floor(share * len(words) + 1e-9)) if share and words else 0


def _below(count: int, rng: np.random.Generator) -> int:
    """A random integer from 0 to ``count - 1``."""
    return int(rng.random() * count)


def _order(count: int, rng: np.random.Generator) -> list[int]:
    """A random order of ``0 .. count - 1``."""
    return np.argsort(rng.random(count), kind="stable").tolist()


def _keys(words: Sequence[str], table: Synonyms) -> list[tuple[int, Sequence[str]]]:
    """The places of the words that have synonyms, and these."""
    keys = ((index, table.get(normalize(word))) for index, word in enumerate(words))
    return [(index, synonyms) for index, synonyms in keys if synonyms]


def _chosen(share: float, words: Sequence[str], rng: np.random.Generator) -> list[bool]:
    """Each word with the probability ``share``, but not all; ``<unk>`` alone is not enough to be left, if avoidable."""
    chosen: list[bool] = (rng.random(len(words)) < share).tolist()
    known = [index for index, word in enumerate(words) if word != UNK] or list(range(len(words)))
    if known and all(chosen[index] for index in known):
        chosen[known[_below(len(known), rng)]] = False
    return chosen
