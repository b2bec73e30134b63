"""The ten commands of a newcomer: last line, exit code, and nothing else that one did not ask for."""

import json
import re
import signal
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

from lightning_tuning.__main__ import main as entry_point
from lightning_tuning.cli.tuning_cli import main

from .test_process import assert_no_noise, command

FIT = ("fit", "-c", "config.yaml", "-c", "preset:cpu")
CURVES = "curves             {folder}/curves.png"
TYPED = {
    "help": (
        ("--help",),
        0,
        "`lightning-tuning COMMAND --help` tells its options, `--version` the version; "
        "`--debug` shows the traceback of an error.",
    ),
    "list": (("list",), 0, "  single_gpu     One CUDA device."),
    "fit": (FIT, 0, CURVES),
    "fit again": (FIT, 0, CURVES),
    "test the best checkpoint": (("test", "-c", "config.yaml", "--ckpt_path=best"), 0, "folder         {folder}"),
    "resume": ((*FIT, "--resume=last", "--trainer.max_epochs=3"), 0, CURVES),
    "override a value": ((*FIT, "--model.lr=0.3"), 0, CURVES),
    "a misspelt key": (
        (*FIT, "--model.lrr=0.3"),
        2,
        "lightning-tuning fit: model: ToyModel has no argument 'lrr'; did you mean 'lr'?\n"
        "Help: lightning-tuning fit --help",
    ),
    "a missing file": (
        ("fit", "-c", "confg.yaml"),
        2,
        "lightning-tuning fit: confg.yaml: there is no such file; did you mean 'config.yaml'?\n"
        "Help: lightning-tuning fit --help",
    ),
    "Ctrl-C": (
        (*FIT, "--model=tests.cli.toy.Interrupted"),
        130,
        "Interrupted after step 4. Continue from the last epoch's end with --ckpt_path={folder}/checkpoints/last.ckpt",
    ),
}
TOLD = re.compile(
    r"Seed set to 0|GPU available: .*|Global batch 8 = 8 x 1 rank; the learning rate is not scaled by it\."
    r"|`Trainer\.fit` stopped: `max_epochs=\d` reached\."
    r"|(Restor|Load)(ing|ed) (all |model )?(states|weights) from the checkpoint (path )?at runs/.*"
)
"""What a run that goes well says on stderr, and no more."""


@pytest.fixture
def _sigint():
    """Python's own handler: a shell that starts the tests in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def in_this_process(capsys):
    def run(*args):
        code = main(args)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def as_processes():
    def run(*args):
        done = command(*args)
        return done.returncode, done.stdout, done.stderr

    return run


def folders():
    return {str(path) for path in Path("runs").glob("*/*")}


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.usefixtures("_sigint")
@pytest.mark.parametrize("way", ["in_this_process", pytest.param("as_processes", marks=pytest.mark.slow)])
def test_ten_commands(way, config, request):
    run = request.getfixturevalue(way)
    Path(config).rename("config.yaml")
    new = {}
    first = {}
    for name, (args, code, end) in TYPED.items():
        before = folders()
        got, out, err = run(*args)
        made = folders() - before
        assert got == code, err
        assert len(made) == ("{folder}" in end)
        if made:
            new[name] = made.pop()
            end = end.format(folder=new[name])
        if code == 0:
            assert out.splitlines()[-1] == end
            assert [line for line in err.splitlines() if not TOLD.fullmatch(line)] == []
        elif code == 2:
            assert (out, err) == ("", f"{end}\n")
        else:
            assert out == ""
            assert err.splitlines()[-1] == end
            assert [line for line in err.splitlines()[:-1] if line and not TOLD.fullmatch(line)] == []
        if name == "fit":
            first = contents(new[name])
    assert contents(new["fit"]) == first
    ended = ("fit", "fit again", "test the best checkpoint", "resume")
    one, two, test, resumed = (json.loads(Path(new[name], "summary.json").read_text()) for name in ended)
    assert new["test the best checkpoint"].endswith("-test")
    assert one["metrics"] == two["metrics"] == test["metrics"]
    assert (two["steps"], resumed["steps"]) == (6, 9)
    saved = yaml.safe_load(Path(new["override a value"], "config.yaml").read_text())
    assert saved["model"]["init_args"]["lr"] == 0.3
    assert torch.load(Path(new["Ctrl-C"], "checkpoints/last.ckpt"), weights_only=True)["global_step"] == 3


def test_ctrl_c_in_a_process(config):
    done = command("fit", "-c", config, "-c", "preset:cpu", "--model=tests.cli.toy.Interrupted")
    (folder,) = folders()
    end = (
        f"Interrupted after step 4. Continue from the last epoch's end with --ckpt_path={folder}/checkpoints/last.ckpt"
    )
    assert (done.returncode, done.stdout) == (130, "")
    *before, last = [line for line in done.stderr.splitlines() if line]
    assert last == end
    assert [line for line in before if not TOLD.fullmatch(line)] == []


def test_ctrl_c_while_the_code_is_loaded(capsys, monkeypatch):
    class Loading(types.ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "lightning_tuning.cli.tuning_cli", Loading("lightning_tuning.cli.tuning_cli"))
    monkeypatch.setattr(sys, "argv", ["lightning-tuning", "fit"])
    assert entry_point() == 130
    assert capsys.readouterr() == ("", "Interrupted.\n")


@pytest.mark.slow
def test_the_first_example_of_the_help_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = re.search(r"^  lightning-tuning (fit .*)$", command("--help").stdout, re.M)[1]
    done = command(*example.split())
    assert done.returncode == 0, done.stderr
    (folder,) = folders()
    assert done.stdout.splitlines()[-1].split() == ["curves", f"{folder}/curves.png"]
    assert_no_noise(done)
