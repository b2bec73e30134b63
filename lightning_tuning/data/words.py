"""What a word is: one rule for the vocabulary, the text augmentations and their synonyms."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

PAD, UNK = "<pad>", "<unk>"
"""Fills a row of a batch up; stands for a word that is not known."""


def normalize(text: str, lower: bool = True) -> str:
    """Lower case, if wanted, and Unicode's composed form, in which an accent and its letter are one character.

    Example:
        >>> normalize("CAFE\N{COMBINING ACUTE ACCENT}") == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
        True
    """
    return unicodedata.normalize("NFC", text.lower() if lower else text)


@cache
def word_pattern() -> re.Pattern[str]:
    """What matches one word: ``<unk>``, letters, or a number.

    Letters are those of any script, with their combining marks; apostrophes and zero-width joiners between letters
    belong to the word. A number is made of digits, with single points and commas between them.

    Example:
        >>> word_pattern().findall("Don't pay 1,000.50 to <unk>!")
        ["Don't", 'pay', '1,000.50', 'to', '<unk>']
    """
    letter = r"[^\W\d_]"
    return re.compile(rf"{UNK}|{letter}+(?:(?:[{_marks()}]|['’\u200c\u200d](?={letter})){letter}*)*|\d+(?:[.,]\d+)*")


@cache
def token_pattern() -> re.Pattern[str]:
    """What matches one token: a word, or one sign that is neither letter, digit nor white space, with its marks.

    Example:
        >>> token_pattern().findall("A 2nd well-known one...")
        ['A', '2', 'nd', 'well', '-', 'known', 'one', '.', '.', '.']
    """
    return re.compile(rf"{word_pattern().pattern}|(?:[^\w\s]|_)[{_marks()}]*")


@cache
def _run_pattern() -> re.Pattern[str]:
    """Words with nothing or a single apostrophe, point, comma or joiner between, as in ``2nd`` and ``U.S.A``."""
    word = f"(?:{word_pattern().pattern})"
    return re.compile(f"{word}(?:['’\u200c\u200d.,]?{word})*")


def split_words(text: str) -> tuple[list[str], list[str]]:
    """The words of a text, and what stands before, between and behind them: one gap more than words.

    For the sake of the augmentations, what belongs together without a gap is one word, such as ``2nd`` and ``U.S.A``.
    So wherever other words are put in their places, no two of them grow together.

    Example:
        >>> split_words("Well, no.")
        (['Well', 'no'], ['', ', ', '.'])
    """
    words, gaps, end = [], [], 0
    for match in _run_pattern().finditer(text):
        words.append(match[0])
        gaps.append(text[end : match.start()])
        end = match.end()
    return words, [*gaps, text[end:]]


def join_words(words: list[str], gaps: list[str]) -> str:
    """The text again, from what :func:`split_words` gave.

    Example:
        >>> join_words(["Well", "no"], ["", ", ", "."])
        'Well, no.'
    """
    return "".join(part for pair in zip(gaps, [*words, ""], strict=True) for part in pair)


@cache
def _marks() -> str:
    r"""Unicode's combining marks as the inside of a character class: Python's ``\w`` leaves them out."""
    marks = [code for code in range(0x300, 0x20000) if unicodedata.category(chr(code))[0] == "M"]
    marks += range(0xE0100, 0xE01F0)  # variation selectors, in a plane that is empty otherwise
    starts = [code for code, before in zip(marks, [-1, *marks], strict=False) if code != before + 1]
    ends = [code for code, after in zip(marks, [*marks[1:], -1], strict=True) if code != after - 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))
