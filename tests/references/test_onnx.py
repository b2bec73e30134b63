"""Networks as ONNX files, run by ONNX's reference evaluator."""

import pytest
import torch

from lightning_tuning import ImageClassifier
from lightning_tuning.export_program import export_program

pytestmark = pytest.mark.references


@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet18"])
def test_an_onnx_file_is_the_module_in_evaluation_mode_for_any_batch(network, tmp_path):
    import onnx
    from onnx.reference import ReferenceEvaluator

    net = ImageClassifier(network=network, image_size=16)
    out = export_program(net, torch.randn(2, 1, 16, 16), tmp_path / "m.onnx")
    assert net.training
    onnx.checker.check_model(onnx.load(out), full_check=True)
    evaluator = ReferenceEvaluator(str(out))
    net.eval()
    for size in (1, 5):
        x = torch.randn(size, 1, 16, 16)
        (found,) = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), net(x), rtol=1e-4, atol=1e-5)
