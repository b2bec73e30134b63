"""From words to numbers and back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from lightning_tuning.data.text_table import read_utf8
from lightning_tuning.data.words import PAD, UNK, normalize, token_pattern
from lightning_tuning.errors import InvalidValueError, check_count

_FORMAT = "lightning_tuning vocabulary 1"


class Vocabulary:
    """The words that have a number of their own: ``<pad>`` is 0, ``<unk>``, any other word, is 1.

    A text is put into Unicode's composed form (NFC), into lower case if wanted, and split into tokens: words of the
    letters of any script with their marks (``don't`` is one, ``well-known`` is ``well``, ``-``, ``known``), numbers
    (``1,000.50`` is one, ``2nd`` is ``2``, ``nd``), and single other signs. ``<unk>`` in a text is the unknown word;
    ``<pad>`` is no token, so no text can be mistaken for padding. White space only separates. The exact rule is
    :func:`lightning_tuning.data.words.token_pattern`.

    Args:
        words: The words from number 2 on, each a token as texts are split into.
        lower: Whether texts are put into lower case.

    Attributes:
        words: All words, the two special ones included: ``words[id]`` is the word of a number.
        lower: As above.

    Raises:
        InvalidValueError: A word comes twice or can come out of no text.

    Example:
        >>> vocabulary = Vocabulary.fit(["A cat.", "A dog, a cat."])
        >>> vocabulary.words
        ('<pad>', '<unk>', 'a', '.', 'cat', ',', 'dog')
        >>> vocabulary.encode("A bird, a cat").tolist()
        [2, 1, 5, 2, 4]
    """

    def __init__(self, words: Iterable[str], lower: bool = True) -> None:
        self.lower = lower
        self.words = (PAD, UNK, *words)
        self._ids = {PAD: 0, UNK: 1}
        for number, word in enumerate(self.words[2:], start=2):
            if not isinstance(word, str) or word == UNK or self.tokenize(word) != [word]:
                raise InvalidValueError(
                    f"The word {word!r} of the vocabulary can come out of no text: it must be one token, "
                    f"{'in lower case, ' if lower else ''}and not {UNK!r}."
                )
            if self._ids.setdefault(word, number) != number:
                raise InvalidValueError(f"The word {word!r} is in the vocabulary twice.")

    @classmethod
    def fit(cls, texts: Iterable[str], size: int | None = None, min_count: int = 1, lower: bool = True) -> Vocabulary:
        """The vocabulary of the most frequent words; of equally frequent ones those that come first in the alphabet.

        Args:
            texts: The training texts.
            size: Most words, the two special ones included, at least 3. None: no limit.
            min_count: How often a word must come in all texts together, at least 1.
            lower: Whether texts are put into lower case.

        Raises:
            InvalidValueError: An argument is outside its range, or no word is left.
        """
        check_count("size", size, 3, optional=True)
        check_count("min_count", min_count, 1)
        counts: Counter[str] = Counter()
        for text in _checked(texts):
            counts.update(_tokens(text, lower))
        del counts[UNK]
        frequent = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        if not frequent:
            most = max(counts.values(), default=0)
            raise InvalidValueError(
                f"min_count is {min_count}, but the most frequent word of the texts comes {most} times; write less, or "
                "give texts with words."
            )
        return cls(frequent[: None if size is None else size - 2], lower)

    def __len__(self) -> int:
        return len(self.words)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text.

        Example:
            >>> Vocabulary([]).tokenize("Don't panic: 3.5 km_h!")
            ["don't", 'panic', ':', '3.5', 'km', '_', 'h', '!']
        """
        return _tokens(text, self.lower)

    def encode(self, text: str) -> np.ndarray:
        """The numbers of a text's tokens, int64 ``[L]``; ``L`` is 0 for a text without any."""
        return np.array(self._numbers(text), dtype=np.int64)

    def encode_batch(
        self, texts: Sequence[str], max_length: int | None = None, fixed: bool = False
    ) -> dict[str, np.ndarray]:
        """The numbers of several texts, filled up to one length with ``<pad>`` at the end.

        A text without any token counts as one ``<unk>``, so that no row is masked as a whole: a mean over its tokens
        would divide by 0, and attention would be NaN.

        Args:
            texts: The texts, ``N`` of them.
            max_length: Most tokens of a text, at least 1; what comes behind them is cut off. None: no limit.
            fixed: Whether ``L`` is ``max_length`` in every batch; False: the length of the batch's longest text.

        Returns:
            ``input_ids``, int64 ``[N, L]``, and ``attention_mask``, bool ``[N, L]``, True where a token stands.

        Raises:
            InvalidValueError: An argument is outside its range, or a text is no string.

        Example:
            >>> batch = Vocabulary(["a", "cat"]).encode_batch(["A cat", "cat", ""])
            >>> batch["input_ids"].tolist()
            [[2, 3], [3, 0], [1, 0]]
            >>> batch["attention_mask"].tolist()
            [[True, True], [True, False], [True, False]]
        """
        check_count("max_length", max_length, 1, optional=True)
        if fixed and max_length is None:
            raise InvalidValueError("fixed is True and max_length is None; write the length, e.g. max_length=128.")
        rows = [self._numbers(text)[:max_length] or [1] for text in _checked(texts)]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        length = max_length if fixed and max_length is not None else int(lengths.max(initial=1))
        mask = np.arange(length) < lengths[:, None]
        ids = np.zeros((len(rows), length), dtype=np.int64)
        ids[mask] = [number for row in rows for number in row]
        return {"input_ids": ids, "attention_mask": mask}

    def decode(self, ids: Iterable[int]) -> str:
        """The words of the numbers with a space between; ``<pad>`` is left out.

        Raises:
            InvalidValueError: A number is not in the vocabulary.

        Example:
            >>> Vocabulary(["a", "cat"]).decode([2, 1, 3, 0, 0])
            'a <unk> cat'
        """
        numbers = [int(number) for number in ids]
        wrong = next((number for number in numbers if not 0 <= number < len(self)), None)
        if wrong is not None:
            raise InvalidValueError(f"ids has {wrong}; the vocabulary has the numbers from 0 to {len(self) - 1}.")
        return " ".join(self.words[number] for number in numbers if number)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the vocabulary as JSON; a file of that name is replaced."""
        path = Path(path)
        content = {"format": _FORMAT, "lower": self.lower, "words": self.words[2:]}
        part = path.with_name(f"{path.name}.part")  # so that there is never half a file
        part.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            InvalidValueError: There is no such file, or it holds something else.
        """
        try:
            content: Any = json.loads(read_utf8(path))
        except json.JSONDecodeError as error:
            raise InvalidValueError(f"{path} is no vocabulary: it is not JSON ({error}).") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise InvalidValueError(
                f"{path} is no vocabulary: its format is {found!r}, not {_FORMAT!r}. Vocabulary.save writes one."
            )
        lower, words = content.get("lower"), content.get("words")
        if not isinstance(lower, bool) or not isinstance(words, list):
            raise InvalidValueError(f"{path} is damaged: 'lower' must be true or false, 'words' a list.")
        try:
            return cls(words, lower)
        except InvalidValueError as error:
            raise InvalidValueError(f"{path} is damaged: {error}") from None

    def _numbers(self, text: str) -> list[int]:
        return [self._ids.get(token, 1) for token in self.tokenize(text)]


def _tokens(text: str, lower: bool) -> list[str]:
    return token_pattern().findall(normalize(text, lower))


def _checked(texts: Iterable[str]) -> Iterable[str]:
    """The texts; one that is no string is refused when its turn comes."""
    if isinstance(texts, (str, bytes)):
        raise InvalidValueError(f"texts is {texts[:40]!r}; it must be a list of texts.")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidValueError(f"texts[{number}] is {text!r}; it must be a string.")
        yield text
