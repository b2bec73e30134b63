import contextlib
import io
import re

import pytest

from lightning_tuning import callbacks
from lightning_tuning.cli import short_help as cli_help
from lightning_tuning.cli.listing import listing
from lightning_tuning.cli.pages import LISTING
from lightning_tuning.cli.tuning_cli import main
from lightning_tuning.mixins import TECHNIQUES, SAMMixin
from lightning_tuning.mixins.composition import own_arguments
from lightning_tuning.presets import preset_names


@pytest.fixture
def lines(capsys):
    assert main(["list"]) == 0
    return capsys.readouterr().out.splitlines()


def test_list_names_every_technique_with_its_keys(lines):
    stage, entries = None, {}
    for line in lines[: lines.index("Callbacks (class_path in trainer.callbacks):")]:
        if heading := re.fullmatch(r" \[(.*)\]", line):
            stage = heading[1]
        elif start := re.match(r"  (\w+Mixin): ", line):
            entries[start[1]] = f"{stage} {line[2:]}"
        elif entries:
            entries[list(entries)[-1]] += f" {line.strip()}"
    assert list(entries) == [technique.__name__ for technique in TECHNIQUES]
    for technique in TECHNIQUES:
        text = entries[technique.__name__]
        assert text.startswith(f"{technique.stage or 'any stage'} {technique.__name__}: {technique.__doc__.split()[0]}")
        for name, parameter in own_arguments(technique).items():
            assert f" {name}={parameter.default}" in text
        off = ", ".join(f"{name}={value}" for name, value in technique.off.items())
        assert text.rstrip().endswith(f" off: {off}")


def test_lines_fit_a_terminal(lines):
    assert max(map(len, lines)) <= 120


def test_keys_have_their_defaults(lines):
    at = next(i for i, line in enumerate(lines) if SAMMixin.__name__ in line)
    assert any(line.startswith("      sam_rho=0.05, ") for line in lines[at : at + 4])


def test_list_names_callbacks_and_presets(lines):
    starts = {line.split()[0].rstrip(":") for line in lines if line.startswith("  ")}
    assert {"GradientNorm", "ExactResume", "MonitorCheck"} <= starts & set(callbacks.__all__)
    assert set(preset_names()) <= starts


def test_the_file_is_what_the_code_lists():
    assert LISTING.read_text(encoding="utf-8") == f"{listing()}\n", "run `python -m lightning_tuning.cli.listing`"


@pytest.fixture(scope="module")
def help_of_a_model():
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main(["fit", "--model.help=SemiSupervisedClassifier"]) == 0
    return text.getvalue()


def test_help_of_a_model_has_every_key_and_no_lists_of_torchs_classes(help_of_a_model):
    assert help_of_a_model.startswith("usage: lightning-tuning [--OPTION VALUE ...]\n\nHelp for --model.help=")
    for technique in TECHNIQUES:
        for name in own_arguments(technique):
            assert len(re.findall(rf"^  --model\.{name} ", help_of_a_model, re.MULTILINE)) == 1
    assert "AdamW" in help_of_a_model
    assert "MultiheadAttention" not in help_of_a_model


def test_help_of_fit_names_the_hosts_and_no_mixins(capsys, monkeypatch):
    monkeypatch.setattr(cli_help, "_MANY_CLASSES", 10_000)  # other tests have classes of their own
    assert main(["fit", "--help=all"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: lightning-tuning fit [--OPTION VALUE ...]\n")
    assert "SemiSupervisedClassifier" in text
    assert not any(technique.__name__ in text for technique in TECHNIQUES)
