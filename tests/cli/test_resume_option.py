"""``--resume``, the other spelling of ``--ckpt_path``, and ``auto``: the newest whole checkpoint and its W&B run."""

from pathlib import Path

import pytest
import torch

from lightning_tuning.cli.tuning_cli import main
from tests.helpers_wandb import run_id

from .test_wandb_runs import WANDB, history, journal


def step_of(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize("option", [("--resume=last",), ("--resume", "last")])
def test_two_spellings(option, run):
    run("fit", "--run.test=false")
    second = run("fit", "--run.test=false", "--trainer.max_epochs=3", *option)
    assert step_of(second) == 9
    assert min(step for _, step in journal(second)) == 6


@pytest.mark.parametrize("args", [("--resume=last", "--ckpt_path=last"), ("--ckpt_path", "last", "--resume", "best")])
def test_both_spellings_at_once_are_refused(args, run, capsys):
    run("fit", *args, code=2)
    assert capsys.readouterr().err == (
        "lightning-tuning: --resume is another spelling of --ckpt_path: write one of them.\n"
    )


def test_a_missing_checkpoint(run, capsys):
    run("fit", "--resume=none.ckpt", code=2)
    assert capsys.readouterr().err == "lightning-tuning: ckpt_path is 'none.ckpt', but there is no none.ckpt.\n"


def test_the_folder_of_a_run_is_no_checkpoint(run, capsys):
    folder = run("fit", "--run.test=false")
    run("fit", f"--resume={folder}", code=2)
    assert capsys.readouterr().err.endswith(
        f"ckpt_path is '{folder}', the folder of a run; did you mean '{folder}/checkpoints/last.ckpt'?\n"
    )


def test_a_folder_that_is_no_checkpoint(run, capsys):
    Path("foreign").mkdir()
    Path("foreign", "notes.txt").write_text("no checkpoint")
    ckpt_path = "ckpt_path is '{}', a folder that is no checkpoint"
    literal = ". Write the path of a file, or last, best or auto, which look among the runs of this name.\n"
    assert run("fit", "--resume=foreign", code=2) is None
    assert capsys.readouterr().err == f"lightning-tuning: {ckpt_path.format('foreign')}{literal}"
    first = run("fit", "--run.test=false")
    for folder in (first.parents[1], first.parent, first / "checkpoints"):
        capsys.readouterr()
        assert run("test", f"--resume={folder}", code=2) is None
        hint = f"; did you mean '{first}/checkpoints/last.ckpt'?\n"
        assert capsys.readouterr().err == f"lightning-tuning: {ckpt_path.format(folder)}{hint}"


def test_a_sharded_checkpoint_without_its_strategy(run, capsys):
    Path("sharded").mkdir()
    torch.save({}, Path("sharded", "meta.pt"))
    run("fit", "--resume=sharded", code=2)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "lightning-tuning: sharded is a folder and no file. If it is the checkpoint of a sharded model, its strategy "
        "alone loads it (fsdp or another), and `python -m lightning.pytorch.utilities.consolidate_checkpoint sharded` "
        "makes a file of it."
    )


def test_evaluations_take_it_too(run, summary):
    trained, tested = run("fit"), run("test", "--resume=best")
    assert summary(trained)["metrics"] == summary(tested)["metrics"]


def test_auto_begins_and_goes_on_with_the_wandb_run(run, offline):
    command = ("fit", *WANDB, "--run.test=false", "--resume=auto")
    straight = journal(run("fit", "--run.test=false", "--run.name=straight", "--trainer.max_epochs=3"))
    first = run(*command)
    second = run(*command, "--trainer.max_epochs=3")
    assert (step_of(first), step_of(second)) == (6, 9)
    (path_1, values_1), (path_2, values_2) = history(first), history(second)
    assert run_id(path_1) == run_id(path_2)
    assert not values_1.keys() & values_2.keys()
    assert values_1 | values_2 == pytest.approx(straight)


@pytest.mark.slow
def test_auto_passes_over_a_damaged_checkpoint(run, offline):
    """``best.ckpt`` is the newest whole one; what W&B has of the steps behind it is not sent again."""
    command = ("fit", *WANDB, "--run.test=false", "--resume=auto")
    first = run(*command, "--run.monitor=val/loss", "--run.mode=max")  # the first epoch's is the largest
    best = torch.load(first / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 3
    last = first / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    with pytest.warns(
        UserWarning, match=rf"{last} is no whole checkpoint: .*\. Going on from {first}/checkpoints/best"
    ):
        second = run(*command, "--run.monitor=val/loss", "--run.mode=max", "--trainer.max_epochs=3")
    assert step_of(second) == 9
    assert min(step for _, step in journal(second)) == 3
    (path_1, values_1), (path_2, values_2) = history(first), history(second)
    assert run_id(path_1) == run_id(path_2)
    assert not values_1.keys() & values_2.keys()
    assert {step for _, step in values_2} >= {6, 7, 8}


def test_a_configuration_may_name_the_checkpoint(run, config):
    run("fit", "--run.test=false")
    Path("more.yaml").write_text("{ckpt_path: last, trainer: {max_epochs: 3}}")
    assert main(["fit", "-c", config, "-c", "more.yaml", "--run.test=false"]) == 0
    assert step_of(max(Path("runs/toy").iterdir())) == 9


def test_auto_goes_on_from_checkpoints_of_other_names(run):
    """With a ModelCheckpoint of one's own there need not be a ``last.ckpt``."""
    own = "--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {filename: '{step}', save_top_k: -1}}"
    command = ("fit", own, "--run.test=false", "--run.monitor=null", "--resume=auto")
    first = run(*command)
    assert [path.name for path in sorted((first / "checkpoints").iterdir())] == ["step=3.ckpt", "step=6.ckpt"]
    second = run(*command, "--trainer.max_epochs=3")
    assert min(step for _, step in journal(second)) == 6


def test_weights_alone_are_not_gone_on_with(run, capsys):
    last = run("fit", "--run.test=false") / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    torch.save({key: content[key] for key in ("state_dict", "pytorch-lightning_version")}, "weights.ckpt")
    run("fit", "--resume=weights.ckpt", code=2)
    assert "'weights.ckpt', which has weights alone: no training can go on" in capsys.readouterr().err
    run("test", "--resume=weights.ckpt")


def test_a_local_file_that_is_trusted(run, capsys):
    last = run("fit", "--run.test=false") / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    torch.save({**content, "mine": Path("a")}, "mine.ckpt")
    run("test", "--resume=mine.ckpt", code=2)
    assert "PosixPath, and only data are loaded" in capsys.readouterr().err
    run("test", "--resume=mine.ckpt", "--weights_only=false")
