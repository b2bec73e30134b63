"""The recipe's networks are diagnosed as its README says, and the mended ones train."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

RECIPE = Path(__file__).parents[2] / "recipes" / "training_stability"
README = (RECIPE / "README.md").read_text()
VARIANTS = yaml.safe_load((RECIPE / "variants.yaml").read_text())
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?")


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE.parents[1]))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # a run sets it; this puts it back
    torch.set_num_threads(1)
    from recipes.training_stability import compare

    return compare


@pytest.fixture
def run(compare, tmp_path):
    """Trains a variant of seed 0 for some epochs: its test accuracy, and what was said of it."""
    arguments = compare.measure.variants_of(["training_stability"], str(RECIPE / "variants.yaml"))

    def train(name, epochs):
        job = compare.measure.Job(name, 0, (*arguments[name], f"--trainer.max_epochs={epochs}"))
        result = compare.measure.run(job, str(tmp_path))
        said = Path(result["checkpoint"]).parents[1] / "diagnosis.txt"
        return result["metrics"]["test/accuracy"], said.read_text().splitlines() if said.exists() else []

    return train


def is_quoted(sentence):
    """Whether a line of the README has these words, and these numbers within a tenth (another CPU rounds otherwise)."""
    quotes = [line.removeprefix("> ") for line in README.splitlines() if line.startswith("> ")]
    same = [quote for quote in quotes if NUMBER.split(quote) == NUMBER.split(sentence)]
    numbers = [float(n) for n in NUMBER.findall(sentence)]
    return any([float(n) for n in NUMBER.findall(quote)] == pytest.approx(numbers, rel=0.1) for quote in same)


def test_the_first_network_does_not_train_and_the_diagnosis_says_why(run):
    accuracy, said = run("sigmoids", 1)

    assert accuracy < 0.2
    constant, vanished = said
    assert re.search(r"activation3 \(Sigmoid\): the outputs have hardly depended on the input since step 0", constant)
    assert re.search(r"The gradient has vanished towards .* since step 0: .*linear1 .* against .*head", vanished)
    assert "each of the 8 Sigmoid layers between them multiplies it by a slope of at most 1/4" in vanished
    assert is_quoted(constant)
    assert is_quoted(vanished)


def test_the_mended_network_trains_and_nothing_is_said_of_it(run):
    accuracy, said = run("batch norm", 4)

    assert accuracy > 0.9
    assert said == []


def test_too_high_a_learning_rate_explodes_and_clipping_mends_it(run):
    accuracy, said = run("learning rate 0.5", 1)
    clipped, said_clipped = run("learning rate 0.5, clipping at 0.25", 3)

    assert accuracy < 0.2
    assert re.search(r"The gradient explodes: its norm is .* at step 4, .* times what it was; lower the", said[0])
    assert is_quoted(said[0])
    assert any("are not finite at step 6" in sentence for sentence in said)
    assert clipped > 0.5
    assert not any("explode" in sentence for sentence in said_clipped)


def test_each_step_of_the_mending_has_those_before_it():
    steps = list(VARIANTS.values())
    mending, faster = steps[:6], steps[6:]

    for before, after in [*itertools.pairwise(mending), *itertools.pairwise(faster)]:
        assert before.items() < after.items()
    assert mending[2].items() < faster[0].items()


@pytest.mark.slow
def test_the_comparison_writes_table_curves_and_diagnoses(compare, tmp_path, monkeypatch, capsys):
    variants = tmp_path / "variants.yaml"
    variants.write_text("sigmoids: {}\nbatch norm: {model.activation_name: relu, model.network.norm: true}\n")

    def run_all(jobs, folder, processes):
        return [compare.measure.run(job, str(folder)) for job in jobs]

    monkeypatch.setattr(compare.measure, "run_all", run_all)
    options = ["--seeds=1", f"--variants={variants}", f"--out={tmp_path}", "--trainer.max_epochs=1"]
    monkeypatch.setattr(sys, "argv", ["compare", *options])
    compare.main()

    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == ["| sigmoids", "| batch norm"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    sigmoids, norm = (tmp_path / "diagnoses.md").read_text().split("\n\nbatch norm:\n\n")
    assert sigmoids.startswith("sigmoids:\n\n* Step 5, epoch 0: ")
    assert norm == "* nothing\n"
