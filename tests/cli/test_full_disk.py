"""A disk that is full for some steps of a run: a limit on files, and a small disk where one may be mounted."""

import contextlib
import errno
import re
import resource
import subprocess
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from lightning_tuning.cli.messages import full_disk
from lightning_tuning.cli.tuning_cli import main
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.runs import read_journal

FILL = []


class Fills(Callback):
    """Fills the disk in the third step of nine, and makes room in the sixth."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step in (2, 5):
            FILL[0](trainer.global_step == 2)


class FillsAtSetup(Callback):
    """Fills the disk before ``config.yaml`` is written."""

    def setup(self, trainer, pl_module, stage):
        FILL[0](True)


@pytest.fixture(params=["limit", "disk"])
def disk(request, config, tmp_path):
    """Fills or empties the disk that ``runs`` is on.

    That is one of 2 MB; with a limit, or where no disk may be mounted, files cannot grow.
    """
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
            (runs / "filling").unlink(missing_ok=True)

    FILL.append(fill)
    yield fill
    FILL.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if mounted:
        subprocess.run(["umount", "-l", str(runs)], check=True, timeout=20)


@pytest.mark.usefixtures("disk")
def test_a_full_disk_costs_no_step_and_no_value(run, summary, recwarn):
    folder = run("fit", "--trainer.max_epochs=3", "--trainer.callbacks+=tests.cli.test_full_disk.Fills")
    journal = list(read_journal(folder / "metrics.jsonl"))
    assert [line["step"] for line in journal if "train/loss_step" in line] == list(range(9))
    assert summary(folder)["steps"] == 9
    assert {file.name for file in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert any("best.ckpt was not written: " in str(warning.message) for warning in recwarn)
    assert (folder / "curves.png").exists()


END = r" Make room, or write --run\.dir=FOLDER on another disk\."


def reported(disk, config, capsys, *args):
    """The one message of a training that the disk has no room for."""
    try:
        assert main(["fit", "-c", config, *args]) == 2
    finally:
        disk(False)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-tuning: ")]
    return line


def test_full_before_the_run(disk, config, capsys):
    disk(True)
    assert re.fullmatch(
        r"lightning-tuning: (No space left on device|File too large): no run can be written to 'runs', where [\d.]+ MB "
        rf"are free\.{END}",
        reported(disk, config, capsys),
    )
    assert not list(Path("runs").glob("toy/*"))


def test_full_at_its_start(disk, config, capsys):
    assert re.fullmatch(
        r"lightning-tuning: (No space left on device|File too large): a file of runs/toy/[-\d]+ was not written, and "
        rf"[\d.]+ MB are free there\.{END}",
        reported(disk, config, capsys, "--trainer.callbacks+=tests.cli.test_full_disk.FillsAtSetup"),
    )


def test_a_file_that_is_named_and_an_error_of_torch(tmp_path):
    named = OSError(errno.EDQUOT, "Disk quota exceeded", str(tmp_path / "cache" / "pixels.bin"))
    of_torch = RuntimeError("PytorchStreamWriter failed")
    of_torch.__context__ = named
    told = str(full_disk(of_torch, tmp_path / "runs" / "a"))
    assert re.fullmatch(
        rf"Disk quota exceeded: {tmp_path}/cache/pixels\.bin was not written, and [\d.]+ MB are free there\. Make "
        r"room\.",
        told,
    )
    assert re.search(END + "$", str(full_disk(of_torch, tmp_path / "cache")))
    assert full_disk(OSError(errno.ENOENT, "No such file"), tmp_path) is None
    assert full_disk(RuntimeError("another"), tmp_path) is None


def test_debug_shows_where_it_was_full(disk, config):
    try:
        with pytest.raises(InvalidValueError, match="was not written, and") as caught:
            main(["fit", "--debug", "-c", config, "--trainer.callbacks+=tests.cli.test_full_disk.FillsAtSetup"])
    finally:
        disk(False)
    assert isinstance(caught.value.__cause__, OSError)
