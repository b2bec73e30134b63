"""Reads what an offline W&B run wrote, without W&B's server."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_FILE_HEADER, _BLOCK, _FRAME = 7, 32768, struct.Struct("<IHB")  # LevelDB's log: checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """The protobuf records of a ``.wandb`` file."""
    data = path.read_bytes()
    position, parts = _FILE_HEADER, b""
    while position + _FRAME.size <= len(data):
        left_in_block = _BLOCK - position % _BLOCK
        if left_in_block < _FRAME.size:
            position += left_in_block
            continue
        _, length, kind = _FRAME.unpack_from(data, position)
        position += _FRAME.size
        parts = (b"" if kind in (_FULL, _FIRST) else parts) + data[position : position + length]
        position += length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record
        elif kind not in (_FIRST, _MIDDLE):
            raise ValueError(f"{path}: a frame of kind {kind} ends at byte {position}")


def config_and_history(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The final config and the history rows of the one offline run below ``folder``, or in the file ``folder``."""
    (path,) = [folder] if folder.is_file() else folder.rglob("*.wandb")
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for record in records(path):
        if record.WhichOneof("record_type") == "config":
            config.update(_values(record.config.update))
        elif record.WhichOneof("record_type") == "history":
            history.append(_values(record.history.item))
    config.pop("_wandb", None)  # W&B's notes about itself
    return config, history


def run_id(path: Path) -> str:
    """The id of the run that a ``.wandb`` file is of."""
    return next(record.run.run_id for record in records(path) if record.WhichOneof("record_type") == "run")


def artifacts(path: Path) -> dict[str, list[str]]:
    """The paths in each artifact that a run logged, by its name."""
    sent = [record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact"]
    return {artifact.name: [entry.path for entry in artifact.manifest.contents] for artifact in sent}


def aliases(path: Path) -> list[tuple[str, list[str]]]:
    """The name that each logged checkpoint's file had, and the aliases it was given, in order."""
    sent = [record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact"]
    return [(json.loads(one.metadata)["original_filename"], sorted(one.aliases)) for one in sent if one.type == "model"]


def exit_code(path: Path) -> int:
    """The code that a run ended with; W&B shows it as failed unless it is 0."""
    (code,) = [record.exit.exit_code for record in records(path) if record.WhichOneof("record_type") == "exit"]
    return code


def service_pid() -> int:
    """The process that W&B writes with."""
    import wandb

    return wandb.setup()._connection._proc._process.pid


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
