"""The script that measures recipes, and the variants of the ablation."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_tuning.cli.tuning_cli import main
from lightning_tuning.mixins import TECHNIQUES

RECIPES = Path(__file__).parents[2] / "recipes"
ABLATION, ADVERSARIAL = RECIPES / "regularization_ablation", RECIPES / "mnist_adversarial"


@pytest.fixture
def measure(monkeypatch):
    """The script as a module; its runs take place in threads and are no training."""
    spec = importlib.util.spec_from_file_location("measure", RECIPES / "measure.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "measure", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda processes, mp_context: ThreadPoolExecutor(1))
    return module


def test_interval(measure):
    mean, half = measure.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302652729696142 / math.sqrt(3))  # the t-quantile of 2 degrees of freedom


def test_table_has_paired_differences(measure):
    values = {"bare": [0.5, 0.7, 0.6], "better": [0.6, 0.8, 0.7], "other": [0.4, 0.9, 0.6]}
    lines = measure.table(values, {name: [2.0, 4.0] for name in values}, "test/accuracy").splitlines()
    assert lines[2].startswith("| bare | 0.6000 ± 0.2484 |  | 3 |")
    assert "| better | 0.7000 ± 0.2484 | +0.1000 ± 0.0000 * |" in lines[3]
    assert "| other | 0.6333 ± 0.6252 | +0.0333 ± 0.3795 |" in lines[4]


def test_variants(measure, tmp_path):
    file = tmp_path / "variants.yaml"
    file.write_text("a: {model.l1_weight: 0.1, model.init_method: null}\nb: {trainer.callbacks+: {class_path: X}}\n")
    made = measure.variants_of(["digits_supervised:model.sam_rho=0.1"], str(file))
    base = [f"--config={RECIPES}/digits_supervised/config.yaml", "--model.sam_rho=0.1"]
    assert made == {
        "digits_supervised:model.sam_rho=0.1": base,
        "a": [*base, "--model.l1_weight=0.1", "--model.init_method=null"],
        "b": [*base, '--trainer.callbacks+={"class_path": "X"}'],
    }
    assert measure.config_of("regularization_ablation/fashion.yaml") == ABLATION / "fashion.yaml"
    with pytest.raises(SystemExit, match="There is no recipe"):
        measure.config_of("nowhere")


def test_runs_that_are_done_are_not_repeated(measure, tmp_path, monkeypatch):
    ran = []

    def run(job, folder):
        ran.append(job.variant)
        if ran.count("broken") == 1 and job.variant == "broken":
            raise RuntimeError("killed")
        metrics = {"test/accuracy": 0.5 + 0.1 * job.seed}
        return {"variant": job.variant, "seed": job.seed, "arguments": job.arguments, "metrics": metrics, "seconds": 1}

    monkeypatch.setattr(measure, "run", run)
    jobs = [measure.Job("broken", 0, ("--y",)), measure.Job("bare", 0, ("--x",))]
    with pytest.raises(RuntimeError, match="killed"):
        measure.run_all(jobs, tmp_path, 1)
    results = measure.run_all(jobs, tmp_path, 1)
    assert ran == ["broken", "bare", "broken"]
    assert [r["variant"] for r in results] == ["broken", "bare"]
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2
    measure.draw({"bare": [0.5, 0.6], "a": [0.6, 0.6], "b": [0.7, 0.8]}, "test/accuracy", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_recipes_set_every_technique():
    written = "".join(path.read_text() for suffix in ("yaml", "md") for path in RECIPES.rglob(f"*.{suffix}"))
    for technique in TECHNIQUES:
        assert re.search(rf"\b({'|'.join(technique.off)})[:=]", written), technique.stem


def variants():
    return yaml.safe_load((ABLATION / "variants.yaml").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", variants())
def test_the_variants_have_no_problem(name, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    changes = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in variants()[name].items()]
    assert main(["plan", f"--config={ABLATION}/config.yaml", *changes]) == 0


@pytest.mark.slow
def test_the_adversarial_variants_have_no_problem(monkeypatch, tmp_path):
    monkeypatch.chdir(RECIPES.parent)
    data = f"--data.path={tmp_path / 'mnist.npz'}"
    np.savez(tmp_path / "mnist.npz", x_train=np.zeros((20, 28, 28), np.uint8), y_train=np.arange(20) % 10)
    for changes in yaml.safe_load((ADVERSARIAL / "variants.yaml").read_text()).values():
        written = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in changes.items()]
        assert main(["plan", f"--config={ADVERSARIAL}/config.yaml", data, *written]) == 0
