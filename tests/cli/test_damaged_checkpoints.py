"""Full disks, damaged files and malicious ones, as a user of the command line meets them."""

import os
import re
import resource
from pathlib import Path

import pytest
import torch

from lightning_tuning.runs import read_journal
from tests.helpers_checkpoints import Payload, flip, served, truncate

SHORT = ("--trainer.max_epochs=1", "--run.test=false")


def steps(folder):
    return [r["step"] for r in read_journal(folder / "metrics.jsonl") if "lr-SGD" in r]


def test_a_damaged_last_checkpoint_gives_way_to_the_best(run):
    """The best one is of the end of an epoch too, so the run goes on there and not at its start."""
    first = run("fit", "--run.monitor=val/loss", "--run.mode=min")
    flip(first / "checkpoints/last.ckpt")
    best = first / "checkpoints/best.ckpt"
    done = torch.load(best, weights_only=True)["global_step"]
    with pytest.warns(
        UserWarning, match=rf"last\.ckpt is no whole checkpoint: it.* Going on from {re.escape(str(best))}"
    ):
        second = run("fit", "--ckpt_path=last", "--trainer.max_epochs=3")
    assert steps(second) == list(range(done, 9))


def test_nothing_whole_is_an_error_and_starts_nothing(run, capsys):
    first = run("fit", *SHORT)
    for file in (first / "checkpoints").iterdir():
        truncate(file)
    assert run("fit", "--ckpt_path=last", "--trainer.max_epochs=3", code=2) is None
    err = capsys.readouterr().err
    assert err.startswith("lightning-tuning: ckpt_path is 'last', but no checkpoint is whole.")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_named_damaged_checkpoint_is_one_message(command, run, capsys):
    path = run("fit", *SHORT) / "checkpoints/last.ckpt"
    flip(path)
    assert run(command, f"--ckpt_path={path}", code=2) is None
    err = capsys.readouterr().err
    assert err.startswith(f"lightning-tuning: {path} is no whole checkpoint: its bytes have changed (record ")
    assert err.endswith(f"A whole one is {path.with_name('best.ckpt')}.\n")


@pytest.mark.parametrize(("command", "place"), [("fit", "hyper_parameters"), ("test", "callbacks")])
def test_a_payload_never_runs(command, place, run, capsys, tmp_path):
    content = torch.load(run("fit", *SHORT) / "checkpoints/last.ckpt", weights_only=True)
    content[place]["lr"] = Payload(tmp_path / "ran")
    torch.save(content, "evil.ckpt")
    with served(tmp_path) as server:
        for source in ("evil.ckpt", f"file://{tmp_path}/evil.ckpt", f"{server}/evil.ckpt"):
            capsys.readouterr()
            assert run(command, f"--ckpt_path={source}", code=2) is None
            message = "was not loaded: it refers to posix.mkdir, and only data are loaded, no code."
            assert capsys.readouterr().err == f"lightning-tuning: {source.removeprefix('file://')} {message}\n"
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_cannot_choose_what_is_imported(run, capsys):
    path = run("fit", *SHORT) / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    Path("evil_module.py").write_text("open('ran', 'w').close()\nfrom tests.cli.toy import ToyModel as Evil\n")
    for key, value in (("_class_path", "evil_module.Evil"), ("lr", "evil_module.Evil")):
        hparams = {**content["hyper_parameters"], key: value}
        torch.save({**content, "hyper_parameters": hparams}, "evil.ckpt")
        run("test", "--ckpt_path=evil.ckpt", code=0 if key == "_class_path" else 2)
    assert not Path("ran").exists()


def test_a_checkpoint_at_an_address_brings_its_arguments(run, tmp_path):
    last = run("fit", "--model.lr=0.3", *SHORT) / "checkpoints/last.ckpt"
    with served(last.parent) as server:
        resumed = run("fit", f"--ckpt_path={server}/last.ckpt", "--trainer.max_epochs=2")
    assert steps(resumed) == [3, 4, 5]
    assert "lr: 0.3" in (resumed / "config.yaml").read_text()


@pytest.fixture
def _full_disk():
    """The system refuses files larger than 3000 bytes: checkpoints, but not the journal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_full_disk")
@pytest.mark.filterwarnings("ignore:The checkpoint .* was not written")
def test_a_full_disk_ends_no_training(run, summary):
    folder = run("fit")
    facts = summary(folder)
    assert facts["steps"] == 6
    assert os.listdir(folder / "checkpoints") == []
    assert facts["last_checkpoint"] is facts["best_checkpoint"] is None
    assert "test/accuracy" in facts["metrics"]  # of the weights at the end
    assert os.listdir("runs/toy") == [folder.name]
