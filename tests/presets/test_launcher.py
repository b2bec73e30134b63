"""Processes that torchrun or srun has started."""

import pytest
import torch

from lightning_tuning.errors import InvalidValueError, TuningError
from lightning_tuning.presets import preset, preset_settings
from lightning_tuning.presets.launcher import Launched, launched

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "WORLD_SIZE": "8"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}


@pytest.fixture
def started(monkeypatch):
    def started(environment, **changes):
        for name, value in {**environment, **changes}.items():
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)

    started(dict.fromkeys([*TORCHRUN, *SLURM], ""))
    return started


def test_on_its_own(started):
    assert launched() is None
    assert preset_settings("multi_node") == {"devices": "auto"}
    with pytest.raises(TuningError) as caught:
        preset("multi_node")
    expected = "preset multi_node is for processes that torchrun or srun starts, none found; use preset:ddp"
    assert str(caught.value) == expected
    # Started by hand on each node, with NODE_RANK and MASTER_ADDR.
    assert preset("multi_node", num_nodes=2) == {"devices": "auto", "num_nodes": 2}


@pytest.mark.parametrize(("environment", "by"), [(TORCHRUN, "torchrun"), (SLURM, "srun")])
def test_numbers_come_from_the_launcher(environment, by, started):
    started(environment)
    assert launched() == Launched(by, devices=4, num_nodes=2)
    assert preset("multi_node") == {"devices": 4, "num_nodes": 2}
    assert preset("multi_node", "ddp", "bf16") == {
        "accelerator": "auto",
        "devices": 4,
        "num_nodes": 2,
        "strategy": "ddp",
        "precision": "bf16-mixed",
    }
    assert preset_settings("fsdp") == {"accelerator": "cuda", "devices": 4, "strategy": "fsdp"}
    assert preset_settings("cpu")["devices"] == 1


def test_torchrun_within_slurm_is_torchrun(started):
    started({**SLURM, **TORCHRUN})
    assert launched().by == "torchrun"


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_an_interactive_shell_of_slurm_has_started_nothing(name, started):
    started(SLURM, SLURM_JOB_NAME=name)
    assert launched() is None


def test_slurm_without_tasks_per_node(started):
    started(SLURM, SLURM_NTASKS_PER_NODE="")
    with pytest.raises(InvalidValueError, match=r"^SLURM started 8 tasks: give it --ntasks-per-node"):
        launched()


def test_one_task_of_a_job_that_has_more(started):
    started(SLURM, SLURM_NTASKS="1", SLURM_NNODES="1")
    assert preset("cpu")["devices"] == 1
    assert preset("multi_node") == {"devices": 1, "num_nodes": 1}


@pytest.mark.parametrize(
    ("environment", "changes", "message"),
    [
        (
            SLURM,
            {"SLURM_NTASKS": "6"},
            "srun has started 6 processes, which are not 4 on each of 2 nodes (SLURM_NTASKS_PER_NODE, SLURM_NNODES): "
            "Lightning needs as many on each node.",
        ),
        (TORCHRUN, {"WORLD_SIZE": "7"}, "torchrun has started 7 processes, which are not 4 on each of 2 nodes ("),
    ],
)
def test_nodes_with_different_numbers_of_processes(environment, changes, message, started):
    started(environment, **changes)
    with pytest.raises(InvalidValueError) as caught:
        preset("multi_node", "ddp")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("gpus", "devices"), [(4, "auto"), (4, -1), (4, "-1"), (8, "0,1,2,3"), (8, "4"), (8, 4), (8, (0, 2, 4, 6))]
)
def test_the_devices_in_other_words(gpus, devices, started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    started(TORCHRUN)
    assert preset("multi_node", "ddp", devices=devices)["devices"] == devices


@pytest.mark.parametrize(
    ("names", "overrides", "would", "has"),
    [
        (
            ["multi_node"],
            {"devices": "auto", "accelerator": "cpu"},
            "multi_node would run 1 process on each of 2 nodes",
            "4",
        ),
        (["multi_node"], {"devices": "3,"}, "multi_node would run 1 process on each of 2 nodes", "4 processes on"),
        (["cpu"], {}, "cpu would run 1 process on one node", "4 processes on each of 2 nodes"),
        (["ddp"], {}, "ddp would run 4 processes on one node", "4 processes on each of 2 nodes"),
        (["multi_node"], {"devices": [0, 1]}, "multi_node would run 2 processes on each of 2 nodes", "4 processes on"),
    ],
)
def test_other_processes_than_were_started(names, overrides, would, has, started):
    started(TORCHRUN)
    with pytest.raises(TuningError) as caught:
        preset(*names, **overrides)
    assert str(caught.value).startswith(f"preset {would}, but torchrun has started {has}")
    assert str(caught.value).endswith("; use preset:ddp with preset:multi_node")


def test_a_launcher_of_one_process(started, told):
    started(SLURM, SLURM_NTASKS="1", SLURM_NTASKS_PER_NODE="", SLURM_NNODES="1")
    assert preset("ddp")["devices"] == 1
    assert told.messages == ["preset ddp: srun has started one process, so one device is used"]
    assert preset("multi_node") == {"devices": 1, "num_nodes": 1}
    assert preset("cpu")["devices"] == 1
