"""Presets and the global batch on the command line."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor

from lightning_tuning.callbacks import ExactResume, GradientNorm, MonitorCheck
from lightning_tuning.cli.tuning_cli import main
from lightning_tuning.runs import GlobalBatch, read_journal
from tests.cli.test_process import ROOT, command, environment
from tests.cli.test_runs import count, trainer_of

TWO = ("--trainer.accelerator=cpu", "--trainer.devices=2")


def test_presets_compose_and_flags_win(config):
    trainer = trainer_of(config, "-c=preset:cpu", "-c=preset:bf16", "-c=preset:debug", "--trainer.log_every_n_steps=2")
    assert (trainer.precision, trainer.limit_val_batches, trainer.log_every_n_steps) == ("bf16-mixed", 2, 2)
    saved = yaml.safe_load(Path(trainer.default_root_dir, "config.yaml").read_text())
    assert (saved["trainer"]["accelerator"], saved["trainer"]["devices"]) == ("cpu", 1)


def test_fast_leaves_out_what_acts_in_a_step(config, capsys):
    trainer = trainer_of(config, "-c=preset:fast", "--run.monitor=null")
    kinds = (ExactResume, MonitorCheck, GlobalBatch, GradientNorm, LearningRateMonitor)
    assert [count(trainer, kind) for kind in kinds] == [1, 1, 1, 0, 0]
    assert trainer.checkpoint_callbacks == []
    records = list(read_journal(Path(trainer.log_dir, "metrics.jsonl")))
    keys = {key for record in records for key in record}
    assert {"val/loss", "train/loss_epoch", "test/accuracy"} <= keys
    assert not {"train/loss_step", "lr-SGD", "grad_norm/total"} & keys
    assert "test/accuracy" in capsys.readouterr().out


def test_the_numbers_of_a_launcher_are_in_the_saved_configuration(config, monkeypatch, capsys):
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    assert main(["plan", "-c", config, "-c", "preset:multi_node", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert (printed["devices"], printed["num_nodes"], printed["strategy"]) == (3, 3, "auto")


T4 = {"is_available": lambda: True, "get_device_name": lambda: "Tesla T4", "is_bf16_supported": lambda **_: False}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("row", "args", "cuda", "environment"),
    [
        (0, ["-c=preset:single_gpu"], {}, {}),
        (1, ["-c=preset:fsdp", "--trainer.accelerator=cpu"], {}, {}),
        (2, ["-c=preset:bf16", "--trainer.accelerator=gpu"], T4, {}),
        (3, ["-c=preset:fp16"], {}, {}),
        (4, ["-c=preset:multi_node"], {}, {}),
        (5, ["-c=preset:cpu"], {}, TORCHRUN),
    ],
)
def test_a_preset_that_cannot_run_here(row, args, cuda, environment, config, monkeypatch, capsys):
    """Each message of the page's table: one line, code 2, no folder."""
    for name, value in ({"is_available": lambda: False} | cuda).items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    page = (ROOT / "docs/presets.md").read_text()
    message = re.findall(r"^\| `[^|]*\| [^|]+ \| `(preset [^`]+)` \|$", page, re.MULTILINE)[row]
    assert main(["fit", "-c", config, *args]) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "Seed set" not in line] == [
        f"lightning-tuning: {message}"
    ]
    assert not Path("runs").exists()


def test_a_global_batch(config, told):
    trainer = trainer_of(config, "--run.global_batch_size=24")
    assert trainer.accumulate_grad_batches == 3
    assert trainer.global_step == 1
    assert "Global batch 24 = 8 x 3 accumulated x 1 rank; the learning rate is not scaled by it." in told.messages


def test_every_run_tells_its_global_batch(config, told):
    assert trainer_of(config).accumulate_grad_batches == 1
    assert "Global batch 8 = 8 x 1 rank; the learning rate is not scaled by it." in told.messages


def test_barebones_has_the_global_batch_too(config):
    settings = ["logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary"]
    changes = ["--run.monitor=null", *(f"--trainer.{name}=null" for name in settings)]
    trainer = trainer_of(config, "--trainer.barebones=true", *changes, "--run.global_batch_size=24")
    assert (trainer.accumulate_grad_batches, trainer.global_step) == (3, 1)


@pytest.mark.parametrize("devices", [1, 2])
def test_plot_schedule_knows_it(devices, config, capsys):
    """24 points in batches of 4: six batches of one process, two to a step, or three of each of two processes."""
    told = ["--run.global_batch_size=8", f"--trainer.devices={devices}", "--data.batch_size=4"]
    assert main(["plot-schedule", "-c", config, *told]) == 0
    assert "6 optimizer steps in 2 epochs" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_make_as_many_steps_as_one(config):
    done = command("fit", "-c", config, "-c", "preset:ddp", *TWO, "--run.global_batch_size=8", "--data.batch_size=4")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Global batch 8 = 4 x 2 ranks; the learning rate is not scaled by it.\n") == 1
    one = command("fit", "-c", config, "-c", "preset:cpu", "--run.global_batch_size=8", "--data.batch_size=4")
    assert "Global batch 8 = 4 x 2 accumulated x 1 rank;" in one.stderr
    # Lightning's distributed sampler has an order of its own, so of the toy's plain loader the numbers of steps agree.
    assert [re.search(r"^steps +(.*)$", text, re.MULTILINE)[1] for text in (done.stdout, one.stdout)] == [
        "6 (2 epochs)"
    ] * 2


def test_a_run_leaves_no_process_group(config, monkeypatch):
    """Its threads would still run when the interpreter ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    backends = []
    monkeypatch.setattr(
        "lightning_tuning.cli.tuning_cli.finish", lambda *a, **k: backends.append(torch.distributed.get_backend())
    )
    assert main(["fit", "-c", config, "-c=preset:ddp", "--trainer.accelerator=cpu", "--trainer.devices=1"]) == 0
    assert backends == ["gloo"]
    assert not torch.distributed.is_initialized()


def by_torchrun(rank, port):
    """How a node starts its process, and its environment."""
    settings = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return ["-m", "torch.distributed.run", *settings, f"--node-rank={rank}"], {}


def by_srun(rank, port):
    """As srun starts a task; the job's nodes are not named, so that the first is this machine."""
    job = {"JOB_ID": "4711", "JOB_NAME": "train", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2"}
    task = {"PROCID": str(rank), "LOCALID": "0", "NODEID": str(rank)}
    return [], {"MASTER_PORT": str(port), **{f"SLURM_{name}": value for name, value in {**job, **task}.items()}}


@pytest.mark.slow
@pytest.mark.parametrize(("start", "size"), [(by_torchrun, None), (by_srun, 32)])
def test_two_nodes(start, size, config):
    """Two nodes on this machine, with one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = ["-m", "lightning_tuning", "fit", "-c", config, "-c", "preset:multi_node", "-c", "preset:ddp"]
    program += [f"--run.global_batch_size={size}"] if size else []
    nodes = []
    for rank in range(2):
        launch, env = start(rank, port)
        nodes.append(
            subprocess.Popen(
                [sys.executable, *launch, *program],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment() | env,
            )
        )
    try:
        texts = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.terminate()  # and torchrun its workers
    assert [node.returncode for node in nodes] == [0, 0], texts
    told = "Global batch 32 = 8 x 2 accumulated x 2 ranks;" if size == 32 else "Global batch 16 = 8 x 2 ranks;"
    assert [told in text for text in texts] == [True, False], texts
    # 24 samples are three batches, so two of each rank, in two epochs.
    assert re.search(r"^steps +(.*)$", texts[0], re.MULTILINE)[1] == f"{2 if size == 32 else 4} (2 epochs)"
    (folder,) = Path("runs/toy").iterdir()
    assert f"folder             {folder}\n" in texts[0]
    saved = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]
    assert (saved["devices"], saved["num_nodes"]) == (1, 2)
