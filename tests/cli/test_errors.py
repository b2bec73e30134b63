import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from lightning_tuning.__main__ import main as entry_point
from lightning_tuning.cli.tuning_cli import main
from lightning_tuning.errors import InvalidValueError

MODEL = "--model=tests.cli.toy."


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.lrr=0.2"], "ToyModel has no argument 'lrr'; did you mean 'lr'?"),
        (
            ["--model=ImageClassifier", "--model.fixmatch_weight=1"],
            "model: ImageClassifier does not offer FixMatchMixin (fixmatch_weight), which is for multiclass targets in "
            "two streams (SemiSupervisedClassifier).",
        ),
        (["--model.lr=fast"], "model: ToyModel: lr: expected float; got fast"),
        (["--model.width=0"], "width is 0; it must be a number of at least 1."),
        (["--model=tests.cli.toy.ToyModle"], "there is no class 'ToyModle'; did you mean 'ToyModel'?"),
        (["--model=ToyModle"], "model: there is no class 'ToyModle'; did you mean 'ToyModel'?"),
        (["--trainer.callbacks+=EarlyStoping"], "there is no class 'EarlyStoping'; did you mean 'EarlyStopping'?"),
        (["--data.batch_sise=2"], "ToyData has no argument 'batch_sise'; did you mean 'batch_size'?"),
        (["--trainer.max_epoch=2"], "There is no option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        (["--run.nam=x"], "There is no option 'run.nam'; did you mean 'run.name'?"),
        (["--trainer.max_epochs=x"], "trainer.max_epochs: expected int; got x"),
        (["--run.mode=up"], "run.mode: expected one of 'min', 'max'; got up"),
        (["--trainer.strategy=dpp"], "invalid strategy name: `strategy='dpp'`"),
        (["--trainer.accelerator=tpu"], "torch_xla"),
        (["--config=none.yaml"], "fit: none.yaml: there is no such file."),
        (["--config=preset:dpp"], "There is no preset 'dpp'; did you mean 'preset:ddp'? Presets: bf16, cpu, ddp, "),
        (["-c=preset:bf16", "-c=preset:fp16"], "preset:bf16 and preset:fp16 contradict each other: precision is "),
        (["-c=preset:multi_node"], "preset multi_node is for processes that torchrun or srun starts, none found"),
        (["-c=preset:fsdp", "--trainer.accelerator=cpu"], "and the accelerator is 'cpu': Lightning's FSDP runs on no"),
        (["--run.global_batch_size=0"], "run.global_batch_size is 0; it must be an integer of at least 1"),
        (
            ["--run.global_batch_size=20"],
            "global_batch_size is 20, which is no multiple of 8 x 1 rank. Write a batch_size of 5, or another",
        ),
        (
            ["--model=ImageClassifier", "--model.network=resnet81"],
            "model.network is 'resnet81'; did you mean 'resnet18'?",
        ),
        (
            ["--model=ImageClassifier", "--model.mixup_off_epoch=soon"],
            "model: ImageClassifier: mixup_off_epoch: expected int; got soon",
        ),
        (
            ["--model=ImageClassifier", "--model.max_norm_bound=None"],
            "model: ImageClassifier: max_norm_bound: expected float; got None, which is written null here",
        ),
        (
            ["--model=ImageClassifier", "--model.norm_name=batchnorm"],
            "model: ImageClassifier: norm_name: expected one of 'batch', 'group', 'layer', 'instance', 'ghost_batch', "
            "'sync_batch'; got batchnorm",
        ),
        (["--model=ImageClassifier", "--model.class_weights=[a]"], "class_weights: expected float; got a"),
        (
            ["--trainer.accumulate_grad_batches=0"],
            "lightning-tuning: trainer.accumulate_grad_batches is 0; it must be an integer of at least 1.",
        ),
        (
            ["--data.batch_size=-4"],
            "lightning-tuning: batch_size should be a positive integer value, but got batch_size=-4",
        ),
        (["--run.mode=null"], "Write --run.mode=max if a larger value is better"),
        (["--run.name=a/b"], "run.name is 'a/b'; it must be the name of one folder."),
        (["--run.monitor=val/acuracy"], "'val/acuracy'"),
        (["--ckpt_path=none.ckpt"], "ckpt_path is 'none.ckpt', but there is no none.ckpt."),
        (["--ckpt_path=lst"], "ckpt_path is 'lst', but there is no lst; did you mean 'last'?"),
        (
            ["--run.dir=recipes/toy/config.yaml"],
            "run.dir is 'recipes/toy/config.yaml', where no folder can be made: Not a directory.",
        ),
        (
            ["--data=null"],
            "lightning-tuning: There are no training data. Write --data=CLASS, e.g. --data=DigitsDataModule",
        ),
        (["--ckpt_path=last"], "but there is no runs/toy/*/checkpoints/last.ckpt."),
        (["--trainer.default_root_dir=here"], "Write --run.dir=here"),
        (
            ["--trainer.callbacks+=FiniteGuard", "--trainer.callbacks+=FiniteGuard"],
            "trainer.callbacks lists FiniteGuard twice, and a checkpoint cannot tell the two apart. Leave one out.",
        ),
        (
            ["--trainer.callbacks+=lightning_tuning.runs.GlobalBatch", "--run.global_batch_size=8"],
            "run.global_batch_size is 8, but the configuration has a GlobalBatch of its own. Leave one of them out.",
        ),
        (["--trainer.callbacks+=ModelCheckpoint"], "run.monitor is 'val/accuracy', but the configuration has"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(args, message, run, capsys):
    run("fit", *args, code=2)
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 3


def test_mistakes_leave_no_empty_folders(run):
    run("fit", "--trainer.strategy=dpp", code=2)
    assert not list(Path("runs").glob("*/*"))


def test_debug_raises_where_it_happened(config):
    with pytest.raises(InvalidValueError) as caught:
        main(["fit", "--debug", "-c", config, "--model.width=0"])
    assert caught.traceback[-1].name == "__init__"


def test_a_bug_of_the_user_keeps_its_traceback(config):
    with pytest.raises(KeyError) as caught:
        main(["fit", "-c", config, "--model.broken=true"])
    assert caught.traceback[-1].path.name == "toy.py"


def test_a_training_that_a_guard_stops_is_one_message_and_exit_code_3(run, capsys):
    guard = "--trainer.callbacks+={class_path: FiniteGuard, init_args: {patience: 2}}"
    with pytest.warns(UserWarning, match="FiniteGuard: the update was not made"):
        folder = run("fit", f"{MODEL}Diverging", guard, code=3)
    err = capsys.readouterr().err
    assert "FiniteGuard stopped the training at step 5, epoch 1: 2 steps in a row were refused. The last one" in err
    assert "Traceback" not in err
    assert len((folder / "bad_batches.jsonl").read_text().splitlines()) == 2
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_bug_in_training_still_leaves_curves(config):
    with pytest.raises(ZeroDivisionError):
        main(["fit", "-c", config, f"{MODEL}Failing"])
    (folder,) = Path("runs/toy").iterdir()
    assert (folder / "curves.png").is_file()
    assert not (folder / "summary.json").exists()


@pytest.fixture
def _sigint():
    """Python's own handler: a shell that starts the tests in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_sigint")
def test_ctrl_c(run, capsys):
    folder = run("fit", f"{MODEL}Interrupted", code=130)
    assert (folder / "curves.png").is_file()
    last = folder / "checkpoints" / "last.ckpt"
    hint = f"Interrupted after step 4. Continue from the last epoch's end with --ckpt_path={last}\n"
    assert capsys.readouterr().err.endswith(hint)


def test_sigterm(run, capsys):
    folder = run("fit", f"{MODEL}Terminated", code=143)
    assert (folder / "curves.png").is_file()
    last = folder / "checkpoints" / "last.ckpt"
    assert capsys.readouterr().err.endswith(f"Stopped by SIGTERM after step 5. Continue with --ckpt_path={last}\n")
    assert torch.load(last, weights_only=True)["global_step"] == 5


def test_the_first_run_and_the_following_ones_have_one_command(run):
    """A job that is requeued is started with the same command."""
    first = run("fit", "--ckpt_path=auto", "--run.test=false")
    assert torch.load(first / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    second = run("fit", "--ckpt_path=auto", "--run.test=false", "--trainer.max_epochs=3")
    assert torch.load(second / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 9
    assert '"step": 5' not in (second / "metrics.jsonl").read_text()


def command(*args, monkeypatch):
    """The installed command, in this process: its exit code."""
    monkeypatch.setattr(sys, "argv", ["lightning-tuning", *args])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    return entry_point()


def test_a_class_in_the_working_folder_is_found(config, capsys, monkeypatch):
    Path("users_own.py").write_text("from tests.cli.toy import ToyModel\n\n\nclass Own(ToyModel):\n    pass\n")
    assert command("fit", "--config", config, "--model=users_own.Own", monkeypatch=monkeypatch) == 0
    assert "steps" in capsys.readouterr().out


def test_a_host_of_pytorch_lightning_is_named(config, capsys, monkeypatch):
    Path("users_foreign.py").write_text(
        "import pytorch_lightning as pl\n\n\nclass Host(pl.LightningModule):\n    pass\n"
    )
    assert command("fit", "--config", config, "--model=users_foreign.Host", monkeypatch=monkeypatch) == 2
    assert "Host comes from the package pytorch_lightning, which does not mix" in capsys.readouterr().err
