"""The nearest right name of keys, classes, modules, files, presets and metrics."""

from pathlib import Path

import pytest

from lightning_tuning.cli.tuning_cli import main

HELP = "Help: lightning-tuning fit --help\n"
CLASS = "A class of yours is written with its module: my_module."
ONLY = "model: write class_path: CLASS and below init_args its arguments, and nothing beside them\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--max_epochs=3"], "There is no option 'max_epochs'; did you mean 'trainer.max_epochs'?"),
        (["--resum=last"], "There is no option 'resum'; did you mean 'resume'?"),
        (["--run.monitr=a"], "There is no option 'run.monitr'; did you mean 'run.monitor'?"),
        (["--trainr.max_epochs=1"], "There is no option 'trainr.max_epochs'; did you mean 'trainer.max_epochs'?"),
        (["--trainer.callback+=WeightEMA"], "There is no option 'trainer.callback'; did you mean 'trainer.callbacks'?"),
        (
            ["--lr=0.1"],
            "There is no option 'lr'. An argument of the model is written --model.lr, one of the Trainer --trainer.lr",
        ),
        (["--preset=cpu"], "There is no option 'preset'. A preset is written --config=preset:NAME"),
        (["preset:cpu"], "There is no option 'preset'. A preset is written --config=preset:NAME"),
        (["--config=confg.yml"], "confg.yml: there is no such file; did you mean 'config.yml'?"),
        (["--config=none.yaml"], "none.yaml: there is no such file."),
        (["--config=cpu"], "cpu: there is no such file; did you mean 'preset:cpu'?"),
        (["--config=prset:ddp"], "prset:ddp: there is no such file; did you mean 'preset:ddp'?"),
        (
            ["--trainer.logger=WandbLoger"],
            f"trainer.logger: there is no class 'WandbLoger'; did you mean 'WandbLogger'? {CLASS}WandbLoger",
        ),
        (["--trainer.logger=Csv"], f"trainer.logger: there is no class 'Csv'; did you mean 'CSVLogger'? {CLASS}Csv"),
        (
            ["--trainer.callbacks+=weight_ema"],
            f"trainer.callbacks: there is no class 'weight_ema'; did you mean 'WeightEMA'? {CLASS}weight_ema",
        ),
        (
            ["--data=DigitDataModule"],
            f"data: there is no class 'DigitDataModule'; did you mean 'DigitsDataModule'? {CLASS}",
        ),
        (
            ["--data=ImageClasifier"],
            "data: there is no class 'ImageClasifier'. A class of yours is written with its module: my_module.",
        ),
        (
            ["--data=ImageClassifier"],
            "data: ImageClassifier is a LightningModule; here a LightningDataModule is needed.",
        ),
        (["--model=DigitsDataModule"], "model: DigitsDataModule is a LightningDataModule; here a LightningModule is"),
        (["--trainer.callbacks+=CSVLogger"], "trainer.callbacks: CSVLogger is a Logger; here a Callback is needed."),
        (["--trainer.logger=WeightEMA"], "trainer.logger: WeightEMA is a Callback; here a Logger is needed."),
        (["--config=recipes"], "recipes: it is a folder; did you mean 'recipes/toy/config.yaml'?"),
        (["--config=runs"], "runs: it is a folder. Write the path of a file."),
        (["--model=zzz"], f"model: there is no class 'zzz'. {CLASS}zzz"),
        (
            ["--model=my_modul.A"],
            "model: there is no module 'my_modul', of 'my_modul.A'; did you mean 'my_module'?",
        ),
        (["--model=imports.Net"], "model: imports.Net cannot be imported: there is no module 'nothing_here'."),
        (
            ["--model=raises.Net"],
            "model: raises.Net cannot be imported: division by zero; `python -c 'import raises'` shows",
        ),
        (["--model=tests.cli.toy.Zzz"], f"model: there is no class 'Zzz'. {CLASS}Zzz"),
        (["--config=empty.yaml"], "empty.yaml: it must hold keys with their values, e.g. trainer: {max_epochs: 3}"),
    ],
)
def test_options(args, message, config, capsys, monkeypatch):
    monkeypatch.syspath_prepend(Path.cwd())
    Path("runs").mkdir()
    for name in ("config.yml", "empty.yaml", "my_module.py"):
        Path(name).touch()
    Path("imports.py").write_text("import nothing_here")
    Path("raises.py").write_text("1 / 0")
    assert main(["fit", f"--config={config}", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"lightning-tuning fit: {message}")
    assert err.endswith(f"\n{HELP}")
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainr: {max_epochs: 1}", "There is no option 'trainr.max_epochs'; did you mean 'trainer.max_epochs'?\n"),
        ("trainer: {max_epoch: 1}", "There is no option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?\n"),
        ("model: {init_args: {lrr: 1}}", "model: ToyModel has no argument 'lrr'; did you mean 'lr'?\n"),
        ("model: {class_pth: ToyModel}", ONLY),
        ("model: {class_path: ToyModel, init_arg: {lr: 1}}", ONLY),
        ("model: {class_path: ToyModel, lr: 1}", ONLY),
        ("trainer: {callbacks: [EarlyStoping]}", "trainer.callbacks: there is no class 'EarlyStoping'; did you mean"),
        (
            "trainer: {callbacks: [{class_path: EarlyStop, init_args: {monitr: a}}]}",
            "trainer.callbacks: EarlyStop has no argument 'monitr'; did you mean 'monitor'?\n",
        ),
        (
            "trainer: {logger: {class_path: ResilientWandbLogger, init_args: {projct: a}}}",
            "trainer.logger: ResilientWandbLogger has no argument 'projct'; did you mean 'project'?\n",
        ),
        ("trainer: [", "Problems parsing config: "),
    ],
)
def test_a_mistake_in_a_file_names_the_file(text, message, config, capsys):
    Path("bad.yaml").write_text(text)
    Path("good.yaml").write_text("trainer: {max_epochs: 1}")
    assert main(["fit", "-c", config, "-c", "bad.yaml", "-c", "good.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"lightning-tuning fit: bad.yaml: {message}")
    assert err.count("\n") == 2


LATER = "--trainer.num_sanity_val_steps=0"  # no validation before the training that could tell
STOPPING = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/los")
CHECKPOINT = ("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/acuracy")
LOGGED = "lr-SGD, train/loss, train/loss_step, val/loss, val/accuracy, train/loss_epoch, train/accuracy"
PLATEAU = "tests.cli.toy.Plateau"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--run.monitor=val/acuracy"],
            "run.monitor is 'val/acuracy', which validation never logs. It logs: val/accuracy, val/loss. "
            "Did you mean 'val/accuracy'?",
        ),
        (
            STOPPING,
            "EarlyStopping monitors 'val/los', which validation never logs. It logs: val/accuracy, val/loss. "
            "Did you mean 'val/loss'?",
        ),
        (
            [LATER, "--run.monitor=val/acuracy"],
            f"run.monitor is 'val/acuracy', which was not logged; did you mean 'val/accuracy'? There is: {LOGGED}.",
        ),
        (
            [LATER, "--run.monitor=null", *CHECKPOINT],
            "ModelCheckpoint monitors 'val/acuracy', which was not logged; did you mean 'val/accuracy'? There is: "
            f"{LOGGED}, epoch, step.",
        ),
        (
            [LATER, *STOPPING],
            f"EarlyStopping monitors 'val/los', which was not logged; did you mean 'val/loss'? There is: {LOGGED}.",
        ),
        (
            [LATER, f"--model={PLATEAU}"],
            f"ReduceLROnPlateau monitors 'val/los', which was not logged; did you mean 'val/loss'? There is: {LOGGED}.",
        ),
    ],
)
def test_metrics(args, message, run, capsys):
    run("fit", *args, code=2)
    assert capsys.readouterr().err.splitlines()[-1] == f"lightning-tuning: {message}"
