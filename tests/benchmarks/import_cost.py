"""What importing costs: ``python tests/benchmarks/import_cost.py``.

Fresh processes in turn, so that a busy machine slows all alike. Printed are the CPU time of ``import lightning``, and
as shares of it in the same round (median and quartiles) what the first use of this package behind it adds, ``import
lightning_tuning`` alone, and the commands that are answered at once, the last three with the start of Python.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

FIRST_USE = """
import time
start = time.process_time()
import lightning
loaded = time.process_time()
import lightning_tuning
lightning_tuning.MixupMixin
print(loaded - start, time.process_time() - loaded)
"""
ALONE = {
    "import lightning_tuning": "import lightning_tuning",
    "lightning-tuning --help": "import sys; sys.argv[1:] = ['--help']; import lightning_tuning.__main__ as m; m.main()",
    "lightning-tuning list": "import sys; sys.argv[1:] = ['list']; import lightning_tuning.__main__ as m; m.main()",
}


def run(code: str) -> tuple[str, float]:
    """What a process that runs this code prints, and its CPU time."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    after = os.times()
    return done.stdout, after.children_user - before.children_user + after.children_system - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    lightning: list[float] = []
    shares: dict[str, list[float]] = {"first use behind import lightning": [], **{name: [] for name in ALONE}}
    for _ in range(rounds + 1):
        base, added = map(float, run(FIRST_USE)[0].split())
        lightning.append(base)
        for values, seconds in zip(shares.values(), [added, *(run(code)[1] for code in ALONE.values())], strict=True):
            values.append(seconds / base)
    print(f"import lightning: {statistics.median(lightning[1:]):.2f} s")  # the first round writes the bytecode
    for name, values in shares.items():
        low, median, high = statistics.quantiles(values[1:], n=4)
        print(f"{name:34} {100 * median:.1f} % ({100 * low:.1f} to {100 * high:.1f})")


if __name__ == "__main__":
    main()
