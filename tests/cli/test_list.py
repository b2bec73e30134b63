import pytest

import lightning_tuning
from lightning_tuning import callbacks
from lightning_tuning.cli import main
from lightning_tuning.mixins import TECHNIQUES, SAMMixin
from lightning_tuning.presets import preset_names


@pytest.fixture
def lines(capsys):
    assert main(["list"]) == 0
    return capsys.readouterr().out.splitlines()


def test_list_names_every_technique_with_its_keys(lines):
    for technique in TECHNIQUES:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"  {technique.__name__} ["))
        assert f"[{technique.stage or 'any stage'}]: {technique.__doc__.split()[0]}" in lines[at]
        keys, off = lines[at + 1].strip().split("; off: ")
        assert off == ", ".join(f"{name}={value}" for name, value in technique.off.items())
        assert {key.split("=")[0] for key in keys.split(", ")} >= set(technique.off)


def test_keys_have_their_defaults(lines):
    at = next(i for i, line in enumerate(lines) if SAMMixin.__name__ in line)
    assert lines[at + 1].startswith("      sam_rho=0.05, ")
    assert lines[at + 1].endswith("; off: sam_rho=0.0")


def test_list_names_callbacks_and_presets(lines):
    starts = {line.split()[0].rstrip(":") for line in lines if line.startswith("  ")}
    assert {"GradientNorm", "ExactResume", "MonitorCheck"} <= starts & set(callbacks.__all__)
    assert set(preset_names()) <= starts


def test_help_mentions_list(capsys):
    assert main(["--help"]) == 0
    assert "list " in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-tuning {lightning_tuning.__version__}\n"
