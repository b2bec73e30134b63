"""A network as a program that runs without its Python class: torch.export's ``.pt2`` or ``.onnx``."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import evaluating
from lightning_tuning.whole_file import whole_file

PROGRAMS = (".pt2", ".onnx")


def export_program(module: LightningModule, example: Tensor, out: str | Path) -> Path:
    """Write ``module.forward``, in evaluation mode, as a program, and try it on another batch size.

    Args:
        module: The module, such as :func:`lightning_tuning.load_exported` makes. It is not changed.
        example: An input, ``[N, ...]`` with N of at least 2. The program takes any N, and the other sizes as here.
        out: The file. ``.pt2``: for ``torch.export.load(out).module()``. ``.onnx``: for every runtime of ONNX; it needs
            the extra ``onnx``.

    Returns:
        The file.

    Raises:
        InvalidValueError: Another suffix, a batch of one, missing packages, or a network that cannot be written so: its
            Python decides on values, or its outputs change when it is a program.
    """
    out = Path(out)
    if out.suffix not in PROGRAMS:
        raise InvalidValueError(f"out is {str(out)!r}; a program's name ends in {' or '.join(PROGRAMS)}.")
    if not example.ndim or len(example) < 2:
        raise InvalidValueError(
            f"example has the shape {list(example.shape)}; it must be [N, ...] with N of at least 2, or the program "
            "would take one sample alone."
        )
    example = example.to(module.device)
    other = torch.cat([example, example[:1]])
    try:
        with torch.no_grad(), evaluating(module):
            forward = _Forward(module).eval()
            expected = forward(other)
            content, run = _WRITERS[out.suffix](forward, example)
            # Not bit for bit: other kernels add in another order.
            torch.testing.assert_close(run(other), expected, rtol=1e-4, atol=1e-5)
    except AssertionError as error:
        raise InvalidValueError(f"As a program {type(module).__name__} has other outputs: {_line(error)}") from error
    with whole_file(out) as file:
        file.write(content)
    return out


class _Forward(nn.Module):
    """A LightningModule's forward, without its ties to a Trainer."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


def _exported(forward: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    try:
        return torch.export.export(forward, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:  # of many kinds, with pages of text
        raise InvalidValueError(
            f"{type(forward.module).__name__} cannot be written as a program: {_line(error)} Its forward must not "
            "decide on the values of tensors or on the batch size. --out=model.safetensors writes the weights alone."
        ) from error


def _pt2(forward: nn.Module, example: Tensor) -> tuple[bytes, Callable[[Tensor], Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.pt2")
        torch.export.save(_exported(forward, example), path)
        return Path(path).read_bytes(), torch.export.load(path).module()


def _onnx(forward: nn.Module, example: Tensor) -> tuple[bytes, Callable[[Tensor], Any]]:
    try:
        import onnx
        import onnxscript  # noqa: F401
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise InvalidValueError(
            f"Writing ONNX needs a package that is not there: {error.name}. Write: pip install lightning-tuning[onnx]"
        ) from error
    with _quiet():
        program = torch.onnx.export(_exported(forward, example), dynamo=True, verbose=False)
    assert program is not None  # it is None only for a file's name
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        program.save(path, external_data=False)
        content = Path(path).read_bytes()
    evaluator = ReferenceEvaluator(onnx.load_from_string(content))

    def run(x: Tensor) -> Any:
        outputs = [
            torch.from_numpy(value) for value in evaluator.run(None, {evaluator.input_names[0]: x.cpu().numpy()})
        ]
        return outputs[0] if len(outputs) == 1 else outputs

    return content, run


_WRITERS: dict[str, Callable[[nn.Module, Tensor], tuple[bytes, Callable[[Tensor], Any]]]] = {
    ".pt2": _pt2,
    ".onnx": _onnx,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's notes on torchvision's operators, which are not here, and on its own deprecated ones."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _line(error: BaseException) -> str:
    """The first line of a message, as a sentence."""
    text = " ".join(next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).split())
    return text if text.endswith((".", "!")) else f"{text}."
