"""Tables of synonyms, given by the user or read from a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from lightning_tuning.data.text_table import read_utf8
from lightning_tuning.data.words import UNK, normalize, split_words
from lightning_tuning.errors import InvalidValueError

Synonyms = Mapping[str, Sequence[str]]


def read_synonyms(path: str | PathLike[str]) -> dict[str, list[str]]:
    """A table of synonyms from a file.

    ``.tsv``, ``.tab`` or ``.txt``: each line is a word and its synonyms with tabs between, without a header; empty
    lines are skipped. ``.json``: an object of words, each with a list of synonyms. Both are UTF-8.

    Raises:
        InvalidValueError: The file is missing or holds something else; the message says where and what is expected.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.tsv").write_text("car\\tautomobile\\tmotor car\\n")
        ...     read_synonyms(Path(folder, "a.tsv"))
        {'car': ['automobile', 'motor car']}
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        pairs = [(str(path), word, synonyms) for word, synonyms in _json_pairs(path)]
    elif suffix in (".tsv", ".tab", ".txt"):
        pairs = []
        for number, line in enumerate(read_utf8(path).splitlines(), start=1):
            if line.strip():
                word, *synonyms = line.split("\t")
                pairs.append((f"{path}, line {number}", word, synonyms))
    else:
        raise InvalidValueError(f"{path} has the ending {suffix!r}; it must be one of .tsv, .tab, .txt, .json.")
    if not pairs:
        raise InvalidValueError(f"{path} has no synonyms.")
    return _table(pairs)


def check_synonyms(table: Synonyms) -> dict[str, list[str]]:
    """The table with its words in lower case, as they are looked up.

    Args:
        table: Each word's synonyms. A word is one word as texts are split into; a synonym may be several words.

    Raises:
        InvalidValueError: It is something else, or a word stands twice.

    Example:
        >>> check_synonyms({"Car": ["automobile"]})
        {'car': ['automobile']}
    """
    if not isinstance(table, Mapping):
        raise InvalidValueError(
            f"The synonyms are {table!r:.60}; they must be a mapping of words to lists of synonyms, such as "
            "read_synonyms(path) reads."
        )
    return _table(("The synonyms", word, synonyms) for word, synonyms in table.items())


def in_case_of(word: str, synonym: str) -> str:
    """The synonym in capitals where the word is, or with a capital where the word has one.

    Example:
        >>> [in_case_of(word, "automobile") for word in ("car", "Car", "CAR")]
        ['automobile', 'Automobile', 'AUTOMOBILE']
    """
    if len(word) > 1 and word.isupper():
        return synonym.upper()
    return synonym[:1].upper() + synonym[1:] if word[:1].isupper() else synonym


def _table(pairs: Iterable[tuple[str, object, object]]) -> dict[str, list[str]]:
    """The table of (where it stands, word, synonyms)."""
    table: dict[str, list[str]] = {}
    for place, word, synonyms in pairs:
        if not isinstance(word, str) or word == UNK or split_words(word) != ([word], ["", ""]):
            raise InvalidValueError(f"{place}: {word!r} is not one word, so no text could have it.")
        key = normalize(word)
        if key in table:
            raise InvalidValueError(f"{place}: {word!r} stands there twice; put all its synonyms together.")
        if isinstance(synonyms, str) or not isinstance(synonyms, Sequence) or not synonyms:
            raise InvalidValueError(
                f"{place}: {word!r} has {synonyms!r}; it must have at least one synonym, in a list."
            )
        for synonym in synonyms:
            if not isinstance(synonym, str) or not split_words(synonym)[0] or synonym != synonym.strip():
                raise InvalidValueError(
                    f"{place}: {word!r} has the synonym {synonym!r}; it must be a word or several, without white space "
                    "around."
                )
            if normalize(synonym) == key:
                raise InvalidValueError(f"{place}: {word!r} is its own synonym; take it out.")
        table[key] = list(synonyms)
    return table


def _json_pairs(path: str | PathLike[str]) -> list[tuple[str, object]]:
    """The words and synonyms of a JSON object; a dict would keep the last of two equal words."""
    try:
        pairs = json.loads(read_utf8(path), object_pairs_hook=_Pairs)
    except json.JSONDecodeError as error:
        raise InvalidValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(pairs, _Pairs):
        raise InvalidValueError(f"{path} holds {type(pairs).__name__}; it must be an object of words with lists.")
    return pairs


class _Pairs(list):
    """The members of a JSON object, which a list in the file is told apart from."""
