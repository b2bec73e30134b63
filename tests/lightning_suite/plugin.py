"""The pytest plugin: a selection of the tests, and a table at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from .adapters import adapted, ours
from .selection import FILES, reason_to_deselect

_COUNTS: dict[str, Counter[str]] = defaultdict(Counter)
_REASONS: Counter[tuple[str, str, str]] = Counter()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left_out = [], []
    for item in items:
        reason = reason_to_deselect(item.name)
        (left_out if reason else kept).append(item)
        if reason:
            _COUNTS[item.path.name]["deselected"] += 1
            _REASONS[item.path.name, item.name.partition("[")[0], reason] += 1
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        _COUNTS[Path(report.nodeid.partition("::")[0]).name][report.outcome] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    write = terminalreporter.write_line
    write("")
    names = [f"{name} is {ours(kind)}" for name, kind in adapted().items()]
    write(f"Under Lightning's names: {', '.join(names)}")
    outcomes = ("passed", "failed", "skipped", "deselected")
    write(f"| file | class | {' | '.join(outcomes)} |")
    write("|---" * 6 + "|")
    for file, kind in FILES.items():
        if counts := _COUNTS.get(Path(file).name):
            write(f"| {Path(file).name} | {kind} | {' | '.join(str(counts[outcome]) for outcome in outcomes)} |")
    for (file, name, reason), count in _REASONS.items():
        write(f"deselected: {file}::{name}{f' ({count})' if count > 1 else ''}: {reason}")
