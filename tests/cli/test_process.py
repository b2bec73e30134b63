"""The command as its own process: what a user sees, and two processes of one run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_tuning

ROOT = Path(lightning_tuning.__file__).parents[1]


def environment():
    """This process's environment for a command of its own: the package's place, and no rank."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    hidden = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in hidden}
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def command(*args):
    return subprocess.run(
        [sys.executable, "-m", "lightning_tuning", *args],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=200,
        check=False,
        # A shell that starts the tests in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def assert_no_noise(done):
    text = (done.stdout + done.stderr).lower()
    for word in ("warning", "tip:", "deprecat", "traceback", "litlogger", "workers", "treespec"):
        assert word not in text, text


def test_a_clean_run_is_quiet(config):
    done = command("fit", "-c", config, "--config=preset:cpu")
    assert done.returncode == 0, done.stderr
    assert_no_noise(done)
    assert "test/accuracy" in done.stdout
    (folder,) = Path("runs/toy").iterdir()
    assert f"folder             {folder.parent}/{folder.name}" in done.stdout


@pytest.mark.parametrize("args", [("list",), ("fit",)])
def test_a_reader_that_has_seen_enough(args, config):
    options = ["-c", config, "--trainer.max_epochs=1"] if args == ("fit",) else []
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lightning_tuning", *args, *options],
            stdout=writer,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=environment(),
            timeout=200,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.returncode == 141
    assert "BrokenPipe" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_share_one_folder(config):
    done = command("fit", "-c", config, "-c", "preset:ddp", "--trainer.accelerator=cpu", "--trainer.devices=2")
    assert done.returncode == 0, done.stderr
    (folder,) = Path("runs/toy").iterdir()
    assert done.stdout.count(f"folder             {folder}\n") == 1
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # 24 points in batches of 8 on two ranks are 2 steps an epoch; one process alone logs each.
    assert [r["step"] for r in steps if "lr-SGD" in r] == [0, 1, 2, 3]
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
