"""Reading checkpoints: a file is compared with its checksums before it is unpickled, and unpickling it runs no code."""

from __future__ import annotations

import mmap
import pickle
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import fsspec.utils
import torch
from fsspec.implementations.local import LocalFileSystem

from lightning_tuning.errors import CheckpointError
from lightning_tuning.named_code import refuse_code

_ZIP = b"PK\x03\x04"
_FOLDER = 0x10
_OLD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""What torch.save's files of before torch 1.6 begin with; they hold no checksums."""

_SHARDED = ("meta.pt", ".metadata", "latest", "checkpoint_rank-*")
"""What the folders hold that are checkpoints: of FSDP and ModelParallel, torch, DeepSpeed, XLA."""

_HYPER_PARAMETERS = ("hparams", "module_arguments", "hyper_parameters", "datamodule_hyper_parameters")
"""Where Lightning looks for them, the first two in old checkpoints."""
_ARGUMENTS = ("checkpoint_path", "map_location", "hparams_file", "strict", "weights_only")


def damage(path: str | Path) -> str | None:
    """Why the bytes of a checkpoint cannot be those that were written, as the end of a sentence.

    torch writes a CRC-32 of every record and does not compare it when it loads: one changed bit of a weight goes
    unseen. Here they are compared, once in a process as long as the file does not change.

    Args:
        path: A file of ``torch.save``, or the folder that a sharded checkpoint is: of one, only whether Lightning came
            to writing its last file.

    Returns:
        The reason; None where nothing speaks against the file.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({"weight": torch.zeros(9)}, folder / "a.ckpt")
        >>> damage(folder / "a.ckpt")
        >>> _ = (folder / "b.ckpt").write_bytes((folder / "a.ckpt").read_bytes()[:-30])
        >>> damage(folder / "b.ckpt")
        'it is cut off'
    """
    path = Path(path).absolute()
    if path.is_dir():
        if (path / "checkpoint").is_dir():  # DeepSpeed's
            return None
        if not (path / "meta.pt").exists():
            return "it is a folder without meta.pt, which Lightning writes last"
        return None if not (reason := damage(path / "meta.pt")) else f"of its file meta.pt, {reason}"
    try:
        status = path.stat()
        return _damage(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


@lru_cache(maxsize=256)
def _damage(path: Path, size: int, time: int) -> str | None:
    if size == 0:
        return "it is empty"
    with path.open("rb") as file:
        head = file.read(len(_OLD))
    if head == _OLD:
        return None
    if not head.startswith(_ZIP):
        return "it does not begin as torch.save's files do"
    try:
        if not zipfile.is_zipfile(path):
            return "it is cut off"
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            pickles = [record for record in records if record.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or any(record.compress_type != zipfile.ZIP_STORED for record in records):
                return "it is an archive, but none of torch.save's"
            changed = _changed_record(path, records, archive.start_dir)
        reader: Any = torch._C.PyTorchFileReader(str(path))  # looks at other parts of the directory than zipfile does
        if len(names := reader.get_all_records()) != len(records):
            return f"its bytes have changed ({len(records)} records in place of {len(names)})"
        for name in names:
            reader.get_record_offset(name)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
        return f"its bytes have changed ({str(error).partition('. ')[0]})"
    return None if changed is None else f"its bytes have changed (record {changed})"


def _changed_record(path: Path, records: list[zipfile.ZipInfo], end: int) -> str | None:
    """The first record that is not as torch wrote it.

    Where a record begins is read as torch does; zipfile's own test misses a changed length that moves it. A record that
    is marked as a folder, or has no compressed size, torch takes for read without reading it.
    """
    if not any(record.CRC for record in records):
        return None  # written under torch.serialization.set_crc32_options(False)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for record in records:
            mark, name, extra = struct.unpack_from("<4s22xHH", mapped, record.header_offset)
            begin = record.header_offset + 30
            start, stop = begin + name + extra, begin + name + extra + record.file_size
            is_sound = (
                mark == _ZIP
                and mapped[begin : begin + name] == record.filename.encode()
                and not record.external_attr & _FOLDER
                and record.compress_size == record.file_size
                and stop <= end
            )
            with memoryview(mapped) as view, view[start:stop] as content:
                if not is_sound or zlib.crc32(content) != record.CRC:
                    return record.filename
    return None


def is_checkpoint(path: Path) -> bool:
    """Whether there is a file of ``torch.save`` or the folder of a sharded checkpoint, by its outside alone.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> torch.save({}, folder / "a.ckpt")
        >>> is_checkpoint(folder / "a.ckpt"), is_checkpoint(folder)
        (True, False)
    """
    if path.is_dir():
        return any(next(path.glob(name), None) for name in _SHARDED)
    try:
        with path.open("rb") as file:
            if file.read(len(_OLD)) == _OLD:
                return True
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def local_path(source: str | Path) -> Path | None:
    """The path that a path or ``file://`` address stands for on this machine; None for a remote one."""
    is_local = fsspec.utils.get_protocol(str(source)) in LocalFileSystem.protocol
    return Path(LocalFileSystem._strip_protocol(str(source))) if is_local else None


@contextmanager
def checked(source: str | Path, weights_only: bool | None = True) -> Iterator[Path]:
    """A checkpoint as a local file that was found whole, for the time of the context.

    A remote one is copied into a temporary file. (torch's own loading from an address keeps files by their last name: a
    second ``.../last.ckpt`` would be the first one.) Torch's refusal to unpickle something in the context's body is
    said in one sentence.

    Args:
        source: A path or an address.
        weights_only: False, which unpickles by running code, is for local files alone.

    Raises:
        CheckpointError: The file is missing, damaged, or holds code.
    """
    path = local_path(source)
    try:
        if path is not None:
            _refuse_damaged(source, path)
            yield path
            return
        if weights_only is False:
            raise CheckpointError(
                f"{source} was not loaded: weights_only=False would run code that comes from another machine. Copy the "
                "file here first, if you trust it."
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "remote.ckpt")
            _fetch(str(source), path)
            _refuse_damaged(source, path)
            yield path
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{source} was not loaded: {refusal(error)}") from error


def read_checkpoint(source: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
    """The content of a checkpoint.

    Args:
        source: A path or an address.
        map_location: The device to load to, as in ``torch.load``.
        weights_only: Whether only data are unpickled. None means True.

    Raises:
        CheckpointError: The file is missing, damaged, no checkpoint, or holds code.
    """
    with checked(source, weights_only) as path:
        try:
            content = torch.load(path, map_location=map_location, weights_only=weights_only is not False)
        except (EOFError, RuntimeError) as error:  # a file of before torch 1.6 that was cut off, for one
            raise CheckpointError(f"{source} cannot be read: {str(error).partition('. ')[0]}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{source} is no checkpoint: it holds a {type(content).__name__} and no dict.")
    return content


def load_checked(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a ``load_from_checkpoint`` of Lightning's with a file that was found whole, so that data alone are loaded.

    Args:
        load: The method.
        *args: Its arguments; the checkpoint may also be an open file, of which no checksums are compared.
        **kwargs: Its arguments by name.

    Raises:
        CheckpointError: The file is missing, damaged, holds code, or names code that is not imported already.
    """
    given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    weights_only = given["weights_only"] = given.get("weights_only") is not False
    source = given.pop("checkpoint_path")
    if not isinstance(source, (str, Path)):
        if weights_only:
            begin = source.tell()
            _refuse_named_code(source, torch.load(source, map_location="cpu", weights_only=True), given)
            source.seek(begin)
        return load(source, **given)
    with checked(source, weights_only) as path:
        if weights_only:
            _refuse_named_code(source, read_head(path), given)
        return load(path, **given)


def read_head(path: Path) -> Any:
    """A local checkpoint's content as data alone; its tensors stay on the disk as long as nobody reads them."""
    with path.open("rb") as file:
        mmap = file.read(len(_ZIP)) == _ZIP
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _refuse_named_code(source: Any, content: Any, given: Mapping[str, Any]) -> None:
    """Lightning has jsonargparse make the arguments of a checkpoint that the command line wrote, or that says so."""
    parts = [content.get(key) for key in _HYPER_PARAMETERS] if isinstance(content, dict) else []
    arguments = {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
    if "_instantiator" in arguments:
        inert = {"_instantiator", "_class_path", *given}  # the first two are checked by Lightning itself
        brought = {key: value for key, value in arguments.items() if key not in inert}
        refuse_code(
            source,
            brought,
            "hyper_parameters",
            "give this argument to load_from_checkpoint, or import its class before",
        )


def refusal(error: Exception) -> str:
    """What torch's refusal to unpickle means, in one sentence or two."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+)", text)
    if named is None:
        reason = re.search(r"WeightsUnpickler error: (.*)", text) or re.search(r"(.*)", text)
        return f"its pickle is not of data alone ({reason[1] if reason else text})."
    what = f"it refers to {named[1]}, and only data are loaded, no code."
    if "is blocked" in text:
        return what
    return f"{what} If you trust it, torch.serialization.add_safe_globals([{named[1]}]) allows this."


def _refuse_damaged(source: str | Path, path: Path) -> None:
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint {source}.")
    if path.is_dir():
        raise CheckpointError(
            f"{source} is a folder and no file. If it is the checkpoint of a sharded model, its strategy alone loads "
            f"it (fsdp or another), and `python -m lightning.pytorch.utilities.consolidate_checkpoint {source}` makes "
            "a file of it."
        )
    if reason := damage(path):
        raise CheckpointError(f"{source} is no whole checkpoint: {reason}.")


def _fetch(address: str, path: Path) -> None:
    try:
        with fsspec.open(address, "rb") as remote, path.open("wb") as file:
            shutil.copyfileobj(remote, file, 2**20)
    except Exception as error:  # each protocol has errors of its own
        raise CheckpointError(f"{address} could not be fetched: {error}") from error
