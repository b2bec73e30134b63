import csv
import re
from pathlib import Path

import pytest

from lightning_tuning.cli.audit import audit_parser
from lightning_tuning.cli.tuning_cli import main

FILES = {"audit.csv", "audit.md", "contact_sheet.png"}


@pytest.fixture
def audit(config, capsys):
    """Audit images; the exit code, what was printed and the report's folder."""
    text = Path(config).read_text().replace("tests.cli.toy.ToyData", "tests.cli.audit_data.Photographs")
    Path(config).write_text(text.replace("tests.cli.toy.ToyModel", "no_such_module.Model"))

    def audit(*args):
        code = main(["audit", "--config", config, *args])
        printed = capsys.readouterr()
        folders = sorted(Path("runs").glob("*/*-audit*"))
        return code, printed, folders[-1] if folders else None

    return audit


def test_nothing_wrong(audit):
    """The model is neither made nor imported."""
    code, printed, folder = audit()
    assert code == 0
    assert re.fullmatch(r"runs/toy/\d{8}-\d{6}-audit", str(folder))
    assert {file.name for file in folder.iterdir()} == FILES
    lines = printed.out.splitlines()
    assert lines[0] == "20 samples: train 12, val 4, test 4."
    assert lines[-1] == f"audit: no error in 20 samples; see {folder}/audit.csv"
    assert (folder / "audit.md").read_text().startswith(f"# Audit\n\n- {lines[0]}\n- {lines[1]}\n")
    assert printed.err == ""


def test_neither_the_model_nor_the_callbacks_are_made(audit):
    made = "{class_path: tests.cli.audit_data.Noticed, init_args: {name: %s}}"
    Path("other.yaml").write_text(f"model: {made % 'model'}\ntrainer: {{callbacks: [{made % 'callback'}]}}\n")
    assert audit("--config", "other.yaml")[0] == 0
    assert {path.name for path in Path().iterdir()} == {"recipes", "runs", "other.yaml"}


def test_a_bad_sample(audit):
    code, printed, folder = audit("--data.bad=7", "--run.name=mine")
    assert code == 1
    assert folder.parent == Path("runs/mine")
    assert "error: 1 sample cannot be used: 7: a.png: it is empty. Mend or remove them" in printed.out
    assert printed.out.splitlines()[-1] == f"audit: 1 of 20 samples is bad; see {folder}/audit.csv"
    with open(folder / "audit.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows if row["status"] == "error"] == ["7"]
    assert rows[7]["reason"] == "a.png: it is empty. Copy it again."


def test_a_warning_is_no_failure(audit):
    code, printed, _ = audit("--data.pale=true")
    assert code == 0
    assert "warning: 1 sample is an image of one colour: 2." in printed.out


def test_copies(audit):
    code, printed, _ = audit("--data.copied=true")
    assert "equal to others, but not their labels: 0, 1." in printed.out
    assert code == ("in two parts" in printed.out)


def test_the_report_goes_to_a_new_folder_alone(audit):
    assert audit("--out", "here/report")[0] == 0
    assert {file.name for file in Path("here/report").iterdir()} == FILES
    assert not Path("runs").exists()
    before = {file: file.read_bytes() for file in Path("here/report").iterdir()}
    code, printed, _ = audit("--out", "here/report", "--data.bad=7")
    assert code == 2
    assert printed.err == (
        "lightning-tuning: out is 'here/report', which is there already; nothing is overwritten. Name a new folder.\n"
    )
    assert {file: file.read_bytes() for file in Path("here/report").iterdir()} == before


def test_two_audits_of_one_second_do_not_collide(audit):
    folders = {audit()[2] for _ in range(2)}
    assert len(folders) == 2


def test_without_a_configuration(config, capsys):
    assert main(["audit", "--data=DigitsDataModule", "--data.test_size=300"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1797 samples: train 1317, val 180, test 300."
    assert re.search(r"see runs/DigitsDataModule/\S+-audit/audit\.csv$", lines[-1])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.bda=7"], "Photographs has no argument 'bda'; did you mean 'bad'?"),
        (["--data=tests.cli.toy.ToyData"], "does not correspond to a subclass of KeyedDataModule"),
        (["--data=ArrayDataModule", "--data.path=no.npz"], "There is no file "),
        (["--data=DigitsDataModule", "--data.val_size=1790"], "val_size is 1790 and test_size is 360; together they"),
        (["--oout=x"], "There is no option 'oout'; did you mean 'out'?"),
        (["--run.mode=max", "--run.monitor=null", "--run.name=a/b"], "run.name is 'a/b'; it must be the name of one"),
    ],
)
def test_mistakes_have_one_message_and_leave_nothing(audit, args, message):
    code, printed, folder = audit(*args)
    assert code == 2
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert folder is None


def test_a_bug_leaves_its_traceback_and_no_folder(audit):
    with pytest.raises(KeyError):
        audit("--data.broken=true")
    assert not [*Path("runs").glob("*/*")]


def test_no_data(capsys):
    assert main(["audit"]) == 2
    assert "the following arguments are required: data" in capsys.readouterr().err


def test_the_configuration_that_a_run_saved(config, capsys):
    """It holds every key of ``fit``, most of them null."""
    assert main(["fit", "--config", config, "--data=DigitsDataModule", "--print_config"]) == 0
    Path("saved.yaml").write_text(capsys.readouterr().out)
    assert main(["audit", "--config=saved.yaml", "--out=report"]) == 0
    assert capsys.readouterr().out.startswith("1797 samples: ")


def test_it_is_in_the_help(capsys):
    assert main(["--help"]) == 0
    assert "audit   " in capsys.readouterr().out
    assert main(["audit", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: lightning-tuning audit ")
    assert "--out" in text
    assert "--model" not in text


def test_it_takes_every_key_of_every_command(monkeypatch):
    keys = set()

    def stop(cli, parser, args):
        for subparser in cli._subcommand_parsers.values():
            keys.update(name.partition(".")[0] for name in subparser.get_defaults().keys())  # noqa: SIM118
        raise InterruptedError

    monkeypatch.setattr("lightning_tuning.cli.tuning_cli.TuningCLI.parse_arguments", stop)
    with pytest.raises(InterruptedError):
        main(["fit"])
    assert {"model", "trainer", "data", "ckpt_path", "lr_scheduler"} < keys
    assert keys <= {name.partition(".")[0] for name in audit_parser().get_defaults().keys()}  # noqa: SIM118
