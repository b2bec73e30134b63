"""Networks as programs: torch.export's files here, ONNX with the reference packages (tests/references)."""

import subprocess
import sys

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_tuning import DropoutMixin, ImageClassifier
from lightning_tuning.cli.tuning_cli import main
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.export import export
from lightning_tuning.export_program import export_program
from tests.cli.toy import ToyModel
from tests.test_export import averaged  # noqa: F401


class Norms(LightningModule):
    """Whose outputs in training are others than in evaluation."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        self.net[1].running_mean.add_(1.0)

    def forward(self, x):
        return self.net(x)


def test_a_program_is_the_module_in_evaluation_mode_for_any_batch(tmp_path):
    net = Norms()
    net.net[2].eval()
    modes = [part.training for part in net.modules()]
    out = export_program(net, torch.randn(2, 3), tmp_path / "new" / "m.pt2")
    assert [part.training for part in net.modules()] == modes
    program = torch.export.load(out).module()
    net.eval()
    for size in (1, 2, 17):
        x = torch.randn(size, 3)
        torch.testing.assert_close(program(x), net(x))


def test_it_runs_without_the_package(tmp_path):
    export_program(Norms(), torch.randn(2, 3), tmp_path / "m.pt2")
    code = (
        "import sys, torch; p = torch.export.load('m.pt2').module(); print(list(p(torch.zeros(5, 3)).shape), "
        "'lightning_tuning' in sys.modules, 'lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[5, 2] False False\n"


@pytest.mark.parametrize("weights", ["average", "teacher", "raw"])
def test_the_command_writes_the_weights_asked_for(weights, averaged, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    arguments = ["--cls=tests.test_export.Taught", "--input_shape=[2]", f"--weights={weights}"]
    assert main(["export", "--ckpt_path=a.ckpt", "--out=m.pt2", *arguments]) == 0
    assert capsys.readouterr().out == "Written: m.pt2\n"
    export("a.ckpt", "m.safetensors", weights)
    from safetensors.torch import load_file

    state = load_file("m.safetensors")
    x = torch.randn(3, 2)
    expected = nn.functional.linear(x, state["layer.weight"], state["layer.bias"])
    torch.testing.assert_close(torch.export.load("m.pt2").module()(x), expected)


def test_token_ids(tmp_path):
    class Texts(LightningModule):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(20, 4, padding_idx=0), nn.Linear(4, 3)

        def forward(self, ids):
            return self.head(self.embedding(ids).mean(1))

    net = Texts()
    ids = torch.zeros(2, 7, dtype=torch.int64)
    program = torch.export.load(export_program(net, ids, tmp_path / "m.pt2")).module()
    ids = torch.randint(1, 20, (4, 7))
    torch.testing.assert_close(program(ids), net.eval()(ids))


class Decides(LightningModule):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Forgets(LightningModule):
    """A number that Python computes from the input becomes a constant of the program."""

    def forward(self, x):
        with torch.no_grad():
            return x + self.offset(x)

    calls = 0

    def offset(self, x):
        self.calls += 1
        return self.calls


@pytest.mark.parametrize(
    ("make", "example", "out", "message"),
    [
        (Norms, torch.zeros(2, 3), "m.pt", r"^out is '.*m\.pt'; a program's name ends in \.pt2 or \.onnx\.$"),
        (Norms, torch.zeros(1, 3), "m.pt2", r"^example has the shape \[1, 3\]; it must be \[N, \.\.\.\] with N of at"),
        (
            Decides,
            torch.zeros(2, 3),
            "m.pt2",
            r"^Decides cannot be written as a program: .* Its forward must not decide",
        ),
        (Forgets, torch.zeros(2, 3), "m.pt2", r"^As a program Forgets has other outputs: "),
    ],
)
def test_what_is_refused(make, example, out, message, tmp_path):
    net = make()
    with pytest.raises(InvalidValueError, match=message):
        export_program(net, example, tmp_path / out)
    assert net.training
    assert not [*tmp_path.iterdir()]


def test_onnx_without_its_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        InvalidValueError, match=r"Writing ONNX needs a package .* pip install lightning-tuning\[onnx\]$"
    ):
        export_program(Norms(), torch.zeros(2, 3), tmp_path / "m.onnx")


def test_arguments_that_do_not_go_together(averaged, tmp_path):  # noqa: F811
    source = str(tmp_path / "a.ckpt")
    with pytest.raises(InvalidValueError, match=r"a program, and cls is not given\. Write --cls=ImageClassifier"):
        export(source, "m.pt2")
    with pytest.raises(InvalidValueError, match="a program, and input_shape is not given"):
        export(source, "m.onnx", cls=ToyModel)
    with pytest.raises(InvalidValueError, match=r"^The suffix of out is '\.pth'"):
        export(source, "m.pth")


def test_techniques_that_act_in_training_leave_nothing(tmp_path):
    class Regularised(DropoutMixin, ImageClassifier):
        pass

    net = Regularised(network="cnn", image_size=8, dropout_rate=0.5)
    x = torch.randn(3, 1, 8, 8)
    program = torch.export.load(export_program(net, x, tmp_path / "m.pt2")).module()
    torch.testing.assert_close(program(x), net.eval()(x))
