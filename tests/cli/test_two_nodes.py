"""A recipe with a teacher and SAM on two nodes: equal to one node; nodes that die, and one that falls silent."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import torch

from lightning_tuning.runs import read_journal
from tests.helpers_checkpoints import assert_the_same_end, last_of

from .nodes import two_nodes
from .test_process import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CONFIG = """
model:
  init_args: {ema_teacher_labels: true, mean_teacher_weight: 1, sam_rho: 0.05, dropout_rate: 0.1, dropout_inject: true}
data:
  init_args: {num_labels: 200, batch_size: 8, unlabeled_batch_size: 16, steps_per_epoch: 4}
trainer:
  max_epochs: 3
  max_steps: -1
  log_every_n_steps: 1
  check_val_every_n_epoch: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {filename: last, every_n_train_steps: 1, enable_version_counter: false}
    - class_path: tests.cli.nodes.Fate
    - class_path: tests.cli.nodes.Digest
run: {test: false}
"""
RECIPE = ROOT / "recipes/digits_semi_supervised/config.yaml"
KILL, STOP = int(signal.SIGKILL), int(signal.SIGSTOP)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "small.yaml").write_text(CONFIG)
    with two_nodes(folder) as nodes:
        yield nodes


def fit(nodes, name, *args, **kwargs):
    configs = (f"--config={RECIPE}", "--config=small.yaml", "--config=preset:multi_node", "--config=preset:ddp")
    auto = (f"--run.name={name}", "--ckpt_path=auto", "--trainer.accelerator=cpu")
    return nodes.run("fit", *configs, *auto, *args, **kwargs)


@pytest.fixture(scope="module")
def whole(nodes):
    ended = fit(nodes, "whole")
    assert [node.code for node in ended] == [0, 0], ended
    return nodes.folder / "runs/whole"


def journals(folder):
    return [list(read_journal(file)) for file in sorted(Path(folder).glob("*/metrics.jsonl"))]


def values(folder):
    """What the runs of a name logged, by step, without the times."""
    logged: dict[int, dict] = {}
    for line in (line for journal in journals(folder) for line in journal):
        kept = {key: value for key, value in line.items() if "time" not in key and "seconds" not in key}
        logged.setdefault(line["step"], {}).update(kept)
    return logged


def trained_steps(folder):
    """The optimizer steps that each run of a name made."""
    return [sorted({line["step"] for line in journal if "train/mean_teacher" in line}) for journal in journals(folder)]


def assert_ranks_agree(folder):
    """On the whole state at the end, teachers and all."""
    digests = [path.read_text() for path in sorted(Path(folder).glob("*/rank*.sha256"))]
    assert len(digests) == 2
    assert digests[0] == digests[1]


def test_two_nodes_are_one_node_with_two_processes(nodes, whole):
    (ended,) = fit(nodes, "one", count=1)
    assert ended.code == 0, ended.output
    assert_the_same_end(whole, nodes.folder / "runs/one", 12)
    assert values(whole) == values(nodes.folder / "runs/one")
    assert len(list(whole.iterdir())) == 1  # the second node writes nothing
    assert_ranks_agree(whole)
    assert_ranks_agree(nodes.folder / "runs/one")
    assert trained_steps(whole) == [[*range(12)]]
    states = last_of(whole)["state_dict"]
    teacher = {key: value for key, value in states.items() if key.startswith("ema_teacher.network") and "weight" in key}
    assert teacher
    assert not any(torch.equal(value, states[key.removeprefix("ema_teacher.")]) for key, value in teacher.items())


def test_nodes_that_die_and_the_run_that_goes_on(nodes, whole):
    """The second node in the middle of the second epoch, then the first in the middle of the third."""
    for rank, place in ((1, 6), (0, 9)):
        ended = fit(nodes, "killed", fate=f"{rank},{place},{KILL}")
        assert ended[rank].code == -KILL
        assert ended[1 - rank].code == 1, ended[1 - rank].output
        assert last_of(nodes.folder / "runs/killed")["global_step"] == place
    ended = fit(nodes, "killed")
    assert [node.code for node in ended] == [0, 0], ended
    assert_the_same_end(nodes.folder / "runs/killed", whole, 12)
    assert values(nodes.folder / "runs/killed") == values(whole)
    assert_ranks_agree(nodes.folder / "runs/killed")
    # Each goes on where the one before it ended.
    assert trained_steps(nodes.folder / "runs/killed") == [[*range(6)], [*range(6, 9)], [*range(9, 12)]]


def test_a_node_that_falls_silent_ends_the_others_after_the_timeout(nodes):
    """Its processes are stopped, so their connections stay open: to the other node it is as if the cable was cut."""
    strategy = "--trainer.strategy={class_path: DDPStrategy, init_args: {timeout: '0:00:15'}}"
    first, second = fit(nodes, "silent", strategy, fate=f"1,6,{STOP}", grace=1)
    assert (first.code, second.code) == (1, None)
    assert re.search("Timed out waiting 15000ms|Application timeout caused pair closure", first.output), first.output
    assert last_of(nodes.folder / "runs/silent")["global_step"] == 6
