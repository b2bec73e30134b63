"""What tar files of the WebDataset convention hold: the place of each sample's image, and its fields as text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lightning_tuning.data.fields import as_field
from lightning_tuning.data.tar_index import TarSample, read_index
from lightning_tuning.errors import InvalidValueError, did_you_mean

_OF_JSON = "json."


class TarTable(NamedTuple):
    """The samples of tar files, one behind the other.

    Args:
        places: Of each image the number of its tar file, and offset and size in it, int64 ``[N, 3]``.
        names: Of each image the name of its member.
        fields: The fields of all samples, by name.
    """

    places: np.ndarray
    names: list[str]
    fields: dict[str, list[str]]


def read_tars(shards: Sequence[str], endings: Sequence[str], fields: Sequence[str]) -> TarTable:
    """Read what stands beside the images.

    Args:
        shards: The tar files.
        endings: Endings of images; a sample's image is the first of these that it has.
        fields: Each the ending of a member that holds one number or text, such as ``cls``, or the name of an entry of
            the ``.json`` member, such as ``json.label``.

    Raises:
        InvalidValueError: See :func:`~lightning_tuning.data.tar_index.read_index`; or a sample has no image, or lacks a
            field.
    """
    places, names = [], []
    columns: dict[str, list[str]] = {field: [] for field in fields}
    for number, shard in enumerate(shards):
        for name, place, values in _rows(shard, endings, fields):
            places.append((number, *place))
            names.append(name)
            for field, value in values.items():
                columns[field].append(value)
    return TarTable(np.array(places, dtype=np.int64).reshape(-1, 3), names, columns)


def joined(first: TarTable, second: TarTable, shards: int) -> TarTable:
    """One table behind the other.

    Args:
        first: Samples of the first tar files.
        second: Samples of those behind them. It may lack fields.
        shards: The number of the first tar files.
    """
    places = np.concatenate([first.places, second.places + np.array([shards, 0, 0])])
    fields = {name: values + second.fields.get(name, []) for name, values in first.fields.items()}
    return TarTable(places, first.names + second.names, fields)


def _rows(
    shard: str, endings: Sequence[str], fields: Sequence[str]
) -> Iterator[tuple[str, tuple[int, int], dict[str, str]]]:
    """Name and place of the image, and the fields, of each sample of a tar file."""
    try:
        with open(shard, "rb") as file:
            for sample in read_index(file, shard):
                image = next((ending for ending in endings if ending in sample.members), None)
                if image is None:
                    raise InvalidValueError(
                        f"{shard}: {sample.key!r} has no image ({', '.join(endings)}), only {_shown(sample)}."
                    )
                yield f"{sample.key}.{image}", sample.members[image], _read_fields(file, shard, sample, fields)
    except OSError as error:
        raise InvalidValueError(f"{shard} cannot be read: {error.strerror}.") from None


def _read_fields(file: BinaryIO, shard: str, sample: TarSample, fields: Sequence[str]) -> dict[str, str]:
    entries: dict[str, Any] | None = None
    values = {}
    for field in fields:
        if field.startswith(_OF_JSON):
            entries = _entries(file, shard, sample) if entries is None else entries
            name = field.removeprefix(_OF_JSON)
            if name not in entries:
                raise InvalidValueError(
                    f"{shard}/{sample.key}.json has no entry {name!r}{did_you_mean(name, entries)} It has "
                    f"{', '.join(map(repr, entries)) or 'none'}."
                )
            values[field] = as_field(entries[name], f"{shard}/{sample.key}.json: {name!r}")
        else:
            text = _content(file, shard, sample, field).strip()
            values[field] = as_field(text, f"{shard}/{sample.key}.{field}")
    return values


def _entries(file: BinaryIO, shard: str, sample: TarSample) -> dict[str, Any]:
    try:
        entries = json.loads(_content(file, shard, sample, "json"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidValueError(f"{shard}/{sample.key}.json is no JSON: {error}.") from None
    if not isinstance(entries, dict):
        raise InvalidValueError(f"{shard}/{sample.key}.json holds {type(entries).__name__}; it must hold an object.")
    return entries


def _content(file: BinaryIO, shard: str, sample: TarSample, ending: str) -> str:
    """The text of a member."""
    if ending not in sample.members:
        raise InvalidValueError(
            f"{shard}: {sample.key!r} has no .{ending}, only {_shown(sample)}. Name the ending of the member that "
            "holds the value, as 'cls', or an entry of the .json, as 'json.label'."
        )
    offset, size = sample.members[ending]
    try:
        return os.pread(file.fileno(), size, offset).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidValueError(f"{shard}/{sample.key}.{ending} is no UTF-8 text: {error.reason}.") from None


def _shown(sample: TarSample) -> str:
    return ", ".join(f".{ending}" for ending in sample.members)
