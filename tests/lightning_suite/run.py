"""What ``python -m tests.lightning_suite --lightning=PATH [options of pytest]`` runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import lightning
import pytest

from tests.lightning_suite.adapters import adapted, ours, put_in_place
from tests.lightning_suite.selection import FILES

put_in_place()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lightning_suite", description=__doc__)
    parser.add_argument(
        "--lightning",
        required=True,
        type=Path,
        help=f"a checkout of Lightning, at best its tag {lightning.__version__}",
    )
    options, others = parser.parse_known_args()
    tests = options.lightning.resolve() / "tests"
    names = {ours(kind) for kind in adapted().values()}
    files = [tests / "tests_pytorch" / file for file, kind in FILES.items() if kind in names]
    there = [str(file) for file in files if file.is_file()]
    if not there:
        parser.error(f"{options.lightning} has none of Lightning's test files, as {files[0]}.")
    for file in set(map(str, files)) - set(there):
        print(f"The checkout has no {file}.")
    root = str(Path(__file__).parents[2])
    # Both are inherited by processes that tests start.
    os.environ["PYTHONPATH"] = os.pathsep.join([root, str(tests), os.environ.get("PYTHONPATH", "")])
    sys.path[:0] = [root, str(tests)]
    settings = [
        "-p",
        "tests.lightning_suite.plugin",
        "-p",
        "no:cacheprovider",
        "--disable-warnings",
        f"--rootdir={tests}",
        "-c",
        os.devnull,
    ]
    return pytest.main([*settings, *others, *there])


if __name__ == "__main__":
    sys.exit(main())
