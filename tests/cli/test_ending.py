"""What a run that ended badly says: its code, its last line, its pictures."""

import errno
import json

import pytest
from matplotlib.figure import Figure

from lightning_tuning.runs.curves import save_curves
from lightning_tuning.runs.journal import whole_journal


def test_weights_that_are_not_finite_are_code_3(run, capsys):
    folder = run("fit", "--model.lr=.inf", code=3)
    streams = capsys.readouterr()
    assert streams.err.splitlines()[-1] == (
        "lightning-tuning: The training ended with weights that are not finite: layer.weight, layer.bias. "
        "--trainer.callbacks+=FiniteGuard leaves out the steps that make them so, --config preset:debug names the "
        "operation, metrics.jsonl the step."
    )
    assert "test/loss" in streams.out  # the best checkpoint may be of before
    assert json.loads((folder / "summary.json").read_text())["steps"] > 0


def test_what_is_frozen_may_be_infinite(run):
    run("fit", "--model=tests.cli.toy.Masked")


def test_a_picture_is_whole_or_that_of_before(run, monkeypatch, capsys):
    folder = run("fit")
    before = (folder / "curves.png").read_bytes()

    def full(figure, file, **kwargs):
        file.write(b"\x89PNG")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        save_curves(folder)
    assert (folder / "curves.png").read_bytes() == before
    other = run("fit")
    assert "the curves could not be drawn" in capsys.readouterr().err
    assert not list(other.glob("*.png"))
    assert json.loads((other / "summary.json").read_text())["curves"] is None


def test_the_curves_of_a_resumed_run_are_whole(run, monkeypatch):
    straight = whole_journal(run("fit", "--trainer.max_epochs=4", "--run.test=false"))
    folders = [run("fit", "--trainer.max_epochs=1", "--run.test=false")]
    for epochs in (3, 4):  # from a run of three epochs, of which the second one's end is gone on from
        path = folders[-1] / "checkpoints" / "last.ckpt"
        folders.append(run("fit", f"--trainer.max_epochs={epochs}", "--run.test=false", f"--ckpt_path={path}"))
        assert json.loads((folders[-1] / "hparams.json").read_text())["resumed_from"] == str(path)
    assert whole_journal(folders[-1]) == straight
    drawn = []
    monkeypatch.setattr("lightning_tuning.runs.curves.draw_curves", lambda records, title: drawn.extend(records))
    save_curves(folders[-1])
    assert drawn == straight


def test_what_came_after_the_checkpoint_is_not_in_the_resumed_runs_curves(tmp_path):
    def journal(name, steps, **facts):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(f'{{"step": {s}, "{name}": 1}}\n' for s in steps))
        (tmp_path / name / "hparams.json").write_text(json.dumps(facts))

    journal("a", range(5))
    journal("b", range(3, 9), resumed_from=str(tmp_path / "a" / "checkpoints" / "last.ckpt"))
    journal("c", [], resumed_from=str(tmp_path / "b" / "checkpoints" / "last.ckpt"))
    journal("d", range(3), resumed_from="https://example.org/last.ckpt")
    expected = [{"step": s, "a": 1} for s in range(3)] + [{"step": s, "b": 1} for s in range(3, 9)]
    assert whole_journal(tmp_path / "b") == whole_journal(tmp_path / "c") == expected
    assert [record["step"] for record in whole_journal(tmp_path / "d")] == [0, 1, 2]
