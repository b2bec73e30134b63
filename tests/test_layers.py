"""Imports go downwards only: each layer knows those below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_tuning

PACKAGE = Path(lightning_tuning.__file__).parent
LAYERS = (
    ("cli", "export", "presets", "__main__"),
    ("modules", "resume", "runs", "export_program"),
    ("mixins", "callbacks", "data"),
    ("timing", "checkpoint_file", "checkpoint_preflight"),
    ("functional", "data_ranks", "named_code", "whole_file"),
    ("errors",),
)
"""From top to bottom. A package may import what stands below it and itself."""
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
STANDARD_LIBRARY = {"__future__", "array", "bisect", "collections", "contextlib", "math", "random", "re", "typing"}
FUNCTIONAL_MAY_IMPORT = {"torch", "numpy", "lightning_tuning", *STANDARD_LIBRARY}


def imported(path: Path) -> set[str]:
    """The absolute names of all modules that a file imports, also inside functions and ``if TYPE_CHECKING``."""
    package = ["lightning_tuning", *path.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from lightning_tuning import x` names a module or what the top level exports: resolve it to its home.
            names |= {
                f"{module}.{_home(alias.name)}" if module == "lightning_tuning" else module for alias in node.names
            }
    return names


def _home(name: str) -> str:
    return lightning_tuning._MODULE_OF.get(name, name)


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_part_of_the_package_has_a_layer():
    assert {layer_of(path) for path in FILES} <= RANK.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    own = layer_of(path)
    inside = {name.split(".")[1] for name in imported(path) if name.startswith("lightning_tuning.")}
    upwards = {name for name in inside if name in RANK and name != own and RANK[name] <= RANK[own]}
    same_layer = {name for name in upwards if RANK[name] == RANK[own]}
    # The command line's files and the presets are one layer; callbacks, data, mixins and runs stand side by side.
    assert not upwards - (same_layer if RANK[own] == 0 else set()), f"{own} imports {upwards}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "functional").glob("*.py")), ids=lambda path: path.name)
def test_functional_knows_tensors_alone(path):
    assert {name.split(".")[0] for name in imported(path)} <= FUNCTIONAL_MAY_IMPORT


def test_functional_loads_without_lightning():
    code = "import sys, lightning_tuning.functional; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent).returncode == 0


def test_the_checker_sees_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    folder = tmp_path / "functional"
    folder.mkdir()
    file = folder / "a.py"
    file.write_text(
        "import lightning.pytorch\nfrom ..mixins.base import X\nfrom . import b\n"
        "from lightning_tuning import SAMMixin\n"
        "from ..errors import E\ndef f():\n    from lightning_tuning.data import D\n"
    )
    assert imported(file) == {
        "lightning.pytorch",
        "lightning_tuning.mixins.base",
        "lightning_tuning.functional",
        "lightning_tuning.mixins",
        "lightning_tuning.errors",
        "lightning_tuning.data",
    }
