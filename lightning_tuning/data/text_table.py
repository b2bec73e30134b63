"""Tables from files: CSV, TSV and Parquet, read strictly."""

from __future__ import annotations

import csv
import importlib
import io
import re
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from lightning_tuning.errors import InvalidValueError, did_you_mean

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_PARQUET = (".parquet", ".pq")
Row = tuple[str, Sequence[str]]  # where it stands, its fields


def read_table(
    path: str | PathLike[str],
    columns: Sequence[str] | None = None,
    required: Sequence[str] = (),
    delimiter: str | None = None,
    quoted: bool = True,
) -> dict[str, list[str]]:
    """The columns of a table as lists of strings, one entry a row, exactly as they stand in the file.

    A text table is UTF-8, with or without a byte order mark; its first line names the columns. A field in quotes may
    hold the delimiter, line breaks and, doubled, quotes. Nothing is guessed or repaired: a row with another number of
    fields than the header is an error, and so is an empty line before the last row. Parquet needs pyarrow; its numbers
    become strings, its missing values the empty string.

    Args:
        path: The file: ``.csv``, ``.tsv``, ``.tab``, ``.parquet`` or ``.pq``; any other name with ``delimiter``.
        columns: The columns to read, in this order. None: all of them.
        required: Columns of the file in which no field may be empty or blank, e.g. the label.
        delimiter: What separates the fields, one character. None: a comma or a tab, by the file's name.
        quoted: Whether quotes enclose fields. False: they are ordinary characters, as in many TSV files of texts.

    Raises:
        InvalidValueError: The file is missing or is no such table; the message says where and what is expected. Rows
            are counted from 1 below the header.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.csv").write_text('label,text\\n1,"Well, no."\\n')
        ...     read_table(Path(folder, "a.csv"), ["text", "label"])
        {'text': ['Well, no.'], 'label': ['1']}
    """
    for name, value in (("columns", columns), ("required", required)):
        if isinstance(value, str):
            raise InvalidValueError(f"{name} is {value!r}; it must be a list of names: write [{value!r}].")
    suffix = Path(path).suffix.lower()
    if delimiter is None and suffix in _PARQUET:
        header, rows = _parquet(path)
    else:
        header, rows = _delimited(path, _checked_delimiter(path, suffix, delimiter), quoted)
    return _columns(path, header, rows, header if columns is None else columns, required)


def read_utf8(path: str | PathLike[str]) -> str:
    """A text file's content, without a byte order mark.

    Raises:
        InvalidValueError: There is no such file, it cannot be read or is not UTF-8; the message names line and byte.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise InvalidValueError(f"There is no file {Path(path).absolute()}.") from None
    except OSError as error:
        raise InvalidValueError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        text = raw.decode("utf-8")
        place = text.find("\0")
        if place < 0:
            return text.removeprefix("\ufeff")
        before, byte = text[:place], 0
    except UnicodeDecodeError as error:
        before, byte = raw[: error.start].decode("utf-8"), raw[error.start]
    utf16 = " It looks like UTF-16." if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or raw[1:2] == b"\0" else ""
    line = len(re.findall(r"\r\n|\r|\n", before)) + 1
    raise InvalidValueError(
        f"{path}, line {line}: byte {len(before.encode('utf-8'))} of the file (from 0) is 0x{byte:02x}, which is not "
        f"UTF-8 text.{utf16} Save the file as UTF-8."
    )


def _checked_delimiter(path: str | PathLike[str], suffix: str, delimiter: str | None) -> str:
    if delimiter is None:
        if suffix not in _DELIMITERS:
            allowed = ", ".join((*_DELIMITERS, *_PARQUET))
            raise InvalidValueError(
                f"{path} has the ending {suffix!r}; it must be one of {allowed}, or write what separates the fields, "
                "e.g. delimiter=';'."
            )
        return _DELIMITERS[suffix]
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise InvalidValueError(f"delimiter is {delimiter!r}; it must be one character, and no quote or line break.")
    return delimiter


def _delimited(path: str | PathLike[str], delimiter: str, quoted: bool) -> tuple[list[str], list[Row]]:
    """Header and rows of a text table."""
    text = read_utf8(path)
    # newline="" keeps the line breaks within quotes as they are.
    lines = io.StringIO(text, newline="")
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    rows: list[Row] = []
    header: list[str] = []
    empty = ""
    limit = csv.field_size_limit(len(text) + 1)  # Python's own, 131072 characters, is less than a long article
    try:
        while True:
            place = f"line {reader.line_num + 1}" + (f" (row {len(rows) + 1})" if header else "")
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                raise InvalidValueError(
                    f"{path}, {place}: {error}. A field that begins with a quote must end with one and have its own "
                    "quotes doubled; if quotes are ordinary characters in this file, write quoted=False."
                ) from None
            if fields and empty:
                raise InvalidValueError(f"{path}, {empty}: the line is empty; take it out.")
            if not fields:
                empty = empty or place
            elif not header:
                header = fields
            elif len(fields) != len(header):
                raise InvalidValueError(
                    f"{path}, {place}: {len(fields)} fields, but the header has {len(header)}: "
                    f"{', '.join(map(repr, header))}. The fields are separated by {delimiter!r}"
                    f"{'; one that contains it must stand in quotes' if quoted else ''}."
                )
            else:
                rows.append((place, fields))
    finally:
        csv.field_size_limit(limit)
    if not header:
        raise InvalidValueError(f"{path} is empty; its first line must name the columns.")
    return header, rows


def _parquet(path: str | PathLike[str]) -> tuple[list[str], list[Row]]:
    """Header and rows of a Parquet file."""
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InvalidValueError(
            f"{path}: reading Parquet needs pyarrow. Write `pip install pyarrow`, or save the table as CSV."
        ) from None
    if not Path(path).is_file():
        raise InvalidValueError(f"There is no file {Path(path).absolute()}.")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"{path} cannot be read as Parquet: {error}") from None
    columns = [column.to_pylist() for column in table.columns]
    for name, column in zip(table.column_names, columns, strict=True):
        odd = next((value for value in column if isinstance(value, (bytes, list, dict))), None)
        if odd is not None:
            raise InvalidValueError(
                f"{path}: column {name!r} holds {type(odd).__name__}; it must hold strings, numbers or dates."
            )
    strings = (tuple("" if value is None else str(value) for value in row) for row in zip(*columns, strict=True))
    return list(table.column_names), [(f"row {number}", row) for number, row in enumerate(strings, start=1)]


def no_column(path: str | PathLike[str], name: str, header: Sequence[str]) -> str:
    """What is said of a column that is not there."""
    other = next((sign for sign in ";,\t|" if len(header) == 1 and sign in header[0]), None)
    hint = f" Are its fields separated by {other!r}? Then write delimiter={other!r}." if other else ""
    return f"{path} has no column {name!r}{did_you_mean(name, header)} It has {', '.join(map(repr, header))}.{hint}"


def _columns(
    path: str | PathLike[str],
    header: Sequence[str],
    rows: Sequence[Row],
    columns: Sequence[str],
    required: Iterable[str],
) -> dict[str, list[str]]:
    """The wanted columns, after what must hold for the header and the required ones."""
    shown = ", ".join(map(repr, header))
    for name in header:
        if not name.strip():
            raise InvalidValueError(f"{path}: the header has a column without a name: {shown}.")
        if header.count(name) > 1:
            raise InvalidValueError(f"{path}: the header has {name!r} more than once: {shown}.")
    required = tuple(required)
    for name in (*columns, *required):
        if name not in header:
            raise InvalidValueError(no_column(path, name, header))
    if not rows:
        raise InvalidValueError(f"{path} has a header, but no rows.")
    for name in required:
        index = header.index(name)
        place = next((place for place, fields in rows if not fields[index].strip()), None)
        if place is not None:
            raise InvalidValueError(f"{path}, {place}: {name!r} is empty; each row needs one.")
    places = {name: header.index(name) for name in columns}
    return {name: [fields[index] for _, fields in rows] for name, index in places.items()}
