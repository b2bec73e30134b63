"""Full disks, damaged files and malicious ones, as a user of the command line meets them."""

import os
import re
import resource
from pathlib import Path

import fsspec
import pytest
import torch

from lightning_tuning.runs import read_journal
from tests.helpers_checkpoints import Payload, flip, served, truncate

REASON = (
    "it is no checkpoint that this run can have written. The checkpoint that the run goes on from names it; remove it "
    "by hand if it is one of yours."
)
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


OWN = ("--run.monitor=null", "--trainer.callbacks+=ModelCheckpoint")
KEPT = (*OWN, "--trainer.callbacks.dirpath=kept")
PLACES = {
    "up and down": "{kept}/../home/own.ckpt",
    "a folder": "{kept}/../home",
    "another name of the system": "local://{home}/own.ckpt",
    "by address": "file://{home}",
    "remote": "memory://home/own.ckpt",
    "no checkpoint": "{kept}/notes.txt",
}


@pytest.mark.parametrize(
    ("place", "settings"),
    [*((place, (*KEPT, "--trainer.callbacks.save_last=true")) for place in PLACES.values()), ("local://{home}", OWN)],
    ids=[*PLACES, "without dirpath"],
)
def test_a_checkpoint_cannot_choose_what_is_removed(place, settings, run, tmp_path, recwarn):
    """ModelCheckpoint removes what its state names as the last or the best one so far."""
    run("fit", *SHORT, *settings)
    home, kept = tmp_path / "home", tmp_path / "kept"
    home.mkdir()
    kept.mkdir(exist_ok=True)
    torch.save({}, home / "own.ckpt")
    (kept / "notes.txt").write_text("mine")
    with fsspec.open("memory://home/own.ckpt", "wb") as remote:
        remote.write(b"mine")
    content = torch.load(next(tmp_path.glob("**/epoch=0-step=3.ckpt")), weights_only=True)
    victim = place.format(kept=kept, home=home)
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state |= {"best_model_path": victim, "last_model_path": victim, "kth_best_model_path": victim}
    torch.save(content, "evil.ckpt")
    run("fit", "--trainer.max_epochs=2", "--run.test=false", "--ckpt_path=evil.ckpt", *settings)
    assert (home / "own.ckpt").is_file()
    assert (kept / "notes.txt").read_text() == "mine"
    assert fsspec.filesystem("memory").cat("/home/own.ckpt") == b"mine"
    told = {str(warning.message) for warning in recwarn if "was not removed" in str(warning.message)}
    assert told <= {f"{victim} was not removed: {REASON}"}
    assert bool(told) == (place != "file://{home}")  # ModelCheckpoint itself does not take this one for its own


def test_its_own_earlier_checkpoints_are_removed(run, tmp_path):
    """Also those that the run before the resume wrote."""
    run("fit", *SHORT, *KEPT)
    (first,) = (tmp_path / "kept").iterdir()
    run("fit", "--trainer.max_epochs=2", "--run.test=false", "--ckpt_path=kept/epoch=0-step=3.ckpt", *KEPT)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {first.name, "epoch=1-step=6.ckpt"}
    run("fit", "--trainer.max_epochs=4", "--run.test=false", "--ckpt_path=kept/epoch=1-step=6.ckpt", *KEPT)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        first.name,
        "epoch=1-step=6.ckpt",
        "epoch=3-step=12.ckpt",
    }


@pytest.mark.parametrize("file", ["secret.txt", "best.ckpt"])
def test_no_file_but_a_checkpoint_is_taken_for_the_best(file, run, tmp_path):
    content = torch.load(run("fit", *SHORT) / "checkpoints/last.ckpt", weights_only=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / file).write_text("mine")
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = str(tmp_path / "home" / file)
    torch.save(content, "evil.ckpt")
    with pytest.warns(UserWarning, match=f"home/{file}, does not count any more: it does not begin as torch"):
        folder = run("fit", "--trainer.max_epochs=2", "--ckpt_path=evil.ckpt")
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 6


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
