"""Mean and standard deviation of images in files, computed once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np

from lightning_tuning.data.bad_samples import BadSampleError
from lightning_tuning.data.hashing import permutation
from lightning_tuning.data.normalize import Normalize

MOST = 2048
"""How many images are read at most: their mean is then within 1 % of a standard deviation of that of all, as a rule."""


def fitted(
    indices: np.ndarray,
    seed: int,
    read: Callable[[int], np.ndarray],
    identity: Callable[[int], str] | None,
    purpose: str,
) -> Normalize:
    """What normalises the images of ``indices``, or of 2048 among them. Images that cannot be read are left out.

    The result is kept in ``~/.cache/lightning-tuning``, or in that folder of ``XDG_CACHE_HOME``.

    Args:
        indices: Of the training part, ``[N]``.
        seed: Chooses among them.
        read: The image of an index as the model is to see it, uint8 ``[H, W, C]``; raises :class:`BadSampleError`.
        identity: A text that changes with an index's image. None: nothing is kept.
        purpose: A text that changes with what ``read`` makes of the images.

    Raises:
        BadSampleError: None of them can be read.
    """
    chosen = np.sort(indices[permutation(len(indices), seed, "statistics")[:MOST]]).tolist()
    path = None if identity is None else _path_for("\n".join([purpose, *map(identity, chosen)]))
    if path is not None and (kept := _load(path)) is not None:
        return kept
    normalize = Normalize.fit(_readable(chosen, read))
    if path is not None:
        _save(path, normalize)
    return normalize


def _readable(indices: list[int], read: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    count = 0
    for index in indices:
        with suppress(BadSampleError):
            image = read(index)
            count += 1
            yield image
    if not count:
        read(indices[0])


def _path_for(text: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    name = blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return Path(root).expanduser() / "lightning-tuning" / "statistics" / f"{name}.json"


def _load(path: Path) -> Normalize | None:
    try:
        kept = json.loads(path.read_text())
        return Normalize(kept["mean"], kept["std"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(path: Path, normalize: Normalize) -> None:
    """Without it the next run is slower, so a folder that cannot be written to is no error."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_text(json.dumps({"mean": normalize.mean, "std": normalize.std}))
        os.replace(beside, path)
