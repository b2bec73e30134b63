"""A disk that is full for some steps of a run: a limit on files, and a small disk where one may be mounted."""

import contextlib
import resource
import subprocess

import pytest
from lightning.pytorch import Callback

from lightning_tuning.runs import read_journal

FILL = []


class Fills(Callback):
    """Fills the disk in the third step of nine, and makes room in the sixth."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in (2, 5):
            FILL[0](trainer.global_step == 2)


@pytest.fixture(params=["limit", "disk"])
def _disk(request, config, tmp_path):
    """Puts ``runs`` on a disk of 2 MB; with a limit, or where no disk may be mounted, files cannot grow."""
    runs = tmp_path / "runs"
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(runs)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    mounted = False
    if request.param == "disk":
        with contextlib.suppress(OSError):
            mounted = subprocess.run(mount, capture_output=True, check=False, timeout=20).returncode == 0

    def fill(full):
        if not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200 if full else before[0], before[1]))
        elif full:
            with open(runs / "filling", "wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
        else:
            (runs / "filling").unlink()

    FILL.append(fill)
    yield
    FILL.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if mounted:
        subprocess.run(["umount", "-l", str(runs)], check=True, timeout=20)


@pytest.mark.usefixtures("_disk")
def test_a_full_disk_costs_no_step_and_no_value(run, summary, recwarn):
    folder = run("fit", "--trainer.max_epochs=3", "--trainer.callbacks+=tests.cli.test_full_disk.Fills")
    journal = list(read_journal(folder / "metrics.jsonl"))
    assert [line["step"] for line in journal if "train/loss_step" in line] == list(range(9))
    assert summary(folder)["steps"] == 9
    assert {file.name for file in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert any("best.ckpt was not written: " in str(warning.message) for warning in recwarn)
    assert (folder / "curves.png").exists()
