"""What the recipes share that build their data themselves."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory


def build_folder(path: Path, fill: Callable[[Path], str]) -> str:
    """Make a folder that is there as a whole or not at all.

    Args:
        path: The folder. If there is something of that name already, it stays as it is.
        fill: Writes the data into the folder it gets, which takes the name ``path`` at the end; it returns what it
            wrote, in words.

    Returns:
        What was written, and where.

    Raises:
        FileExistsError: There is something of that name already.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already, and stays as it is. Remove it, or name another with --out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as unfinished:
        folder = Path(unfinished, path.name)
        folder.mkdir()
        written = fill(folder)
        os.rename(folder, path)
    return f"{path}: {written}"


def command(
    description: str | None, default: str, fill: Callable[[Path], str], arguments: Sequence[str] | None = None
) -> None:
    """The command line of a recipe's ``build``: one option, ``--out``, the folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(default), help=f"the folder; {default} if not given")
    try:
        print(build_folder(parser.parse_args(arguments).out, fill))
    except FileExistsError as error:
        raise SystemExit(str(error)) from None
