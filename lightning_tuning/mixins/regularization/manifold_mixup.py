"""Manifold mixup: mix pairs of samples in a hidden layer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_tuning.errors import InvalidValueError, check_range
from lightning_tuning.functional import mix, sample_beta
from lightning_tuning.mixins.blocks import blocks_of, student_children
from lightning_tuning.mixins.injection import check_pattern, named, no_match
from lightning_tuning.mixins.inner_pass import in_inner_pass
from lightning_tuning.mixins.inputs import first_tensor, map_inputs
from lightning_tuning.mixins.mixing import MixingMixin, Run, soft_target
from lightning_tuning.mixins.plan import Cost


class ManifoldMixupMixin(MixingMixin):
    """Mixes two samples in a hidden layer, and their labels (Verma et al., 2019).

    For each batch one layer is drawn, and in it the output of each sample is mixed with that of a random partner of the
    same batch, with one share lambda ~ Beta(alpha, alpha). Class ids become probabilities ``[N, C]``, for which the
    module needs ``num_classes``; floating targets are mixed as they are. Inputs may be anything, token ids too: those
    are not mixed themselves, the layers behind them are.

    By default the layers are the input and the first half of the module's blocks. The blocks are its children that hold
    weights, in the order of their registration; a container such as ``nn.Sequential`` counts as what it contains, and a
    single child that holds all weights is entered in the same way. For a ResNet-18 that is the stem and the blocks of
    the first two of its four stages.

    Args:
        manifold_mixup_alpha: Parameter of the Beta distribution, >= 0; the paper's 2.0 on CIFAR. Off: 0.
        manifold_mixup_layers: Regular expression of the layers to draw from: whole names, as in ``named_modules()``, of
            modules that return one floating tensor ``[N, ...]``; ``input`` is the input. Example:
            ``input|network\\.layer[12]``. None takes the input and the first half of the blocks.
        manifold_mixup_probability: Chance that a batch is mixed, in (0, 1]; with other mixings on, its chance among
            them.
        manifold_mixup_off_epoch: First epoch, counted from 0, that is not mixed any more, >= 1. None mixes to the end.

    Raises:
        InvalidValueError: An argument is out of range, or the layer drawn cannot be mixed.

    Source: Verma et al., 2019, "Manifold mixup: better representations by interpolating hidden states", section 2.
    """

    stem = "manifold_mixup"
    off = {"manifold_mixup_alpha": 0.0}
    couples = True
    changes = ("activations", "target")
    whole_batch = "mixes each sample with another of its batch"

    def __init__(
        self,
        *args: Any,
        manifold_mixup_alpha: float = 2.0,
        manifold_mixup_layers: str | None = None,
        manifold_mixup_probability: float = 1.0,
        manifold_mixup_off_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("manifold_mixup_alpha", manifold_mixup_alpha)
        check_pattern("manifold_mixup_layers", manifold_mixup_layers)
        self.manifold_mixup_alpha = manifold_mixup_alpha
        self.manifold_mixup_layers = manifold_mixup_layers
        self._set_mixing("manifold_mixup", manifold_mixup_probability, manifold_mixup_off_epoch)

    def no_effect(self) -> str | None:
        if ManifoldMixupMixin._manifold_layers(self):
            return None
        layers = no_match("manifold_mixup_layers", str(self.manifold_mixup_layers), _every_layer(self), "layers")
        return f"in {self._host_name}, {layers}"

    def extra_cost(self) -> Cost:
        return Cost(memory="a mixed copy of a layer's output")

    def _manifold_layers(self) -> dict[str, Any]:
        """The layers to draw from, by name; None is the input."""
        if self.manifold_mixup_layers is None:
            blocks = blocks_of(self)
            return {"input": None, **dict(islice(blocks.items(), len(blocks) // 2))}
        return named(_every_layer(self), self.manifold_mixup_layers)

    def _mixing_step(self, run: Run, x: Any, target: Any) -> Any:
        soft = soft_target(self, "ManifoldMixupMixin", target)
        layers = ManifoldMixupMixin._manifold_layers(self)
        inputs = x.values() if isinstance(x, Mapping) else (x,)
        if any(isinstance(v, Tensor) and not v.is_floating_point() for v in inputs):
            layers = {name: layer for name, layer in layers.items() if layer is not None}
        if not layers:
            raise InvalidValueError(
                "ManifoldMixupMixin found no layer to mix, and inputs that are integers cannot be mixed themselves. "
                f"Name layers of {self._host_name} that return floats in manifold_mixup_layers."
            )
        share = sample_beta(self.manifold_mixup_alpha)
        partner = torch.randperm(len(soft), device=first_tensor(x).device)
        name = list(layers)[int(torch.randint(len(layers), ()))]
        self.log_term("manifold_mixup", torch.tensor(max(share, 1 - share)))
        mixed = mix(soft, partner, share)
        layer = layers[name]
        if layer is None:
            return run(map_inputs(lambda values: mix(values, partner, share), x), mixed)

        repeated = any(t.stage in ("repeat", "attack") for t in self.active_techniques())
        hook = _MixOutput(name, partner, share, repeated)
        handles = layer.register_forward_hook(hook), self.register_forward_pre_hook(hook.begin)
        try:
            output = run(x, mixed)
        finally:
            for handle in handles:
                handle.remove()
        if output is not None and not hook.count:
            raise InvalidValueError(
                f"ManifoldMixupMixin drew the layer {name!r}, but {self._host_name}.training_step did not run it, or "
                "ran it inside torch.compile. Leave it out of manifold_mixup_layers."
            )
        return output


class _MixOutput:
    """Forward hook that mixes a layer's output, once in each forward of the module that it belongs to."""

    def __init__(self, name: str, partner: Tensor, share: float, repeated: bool) -> None:
        self.name, self.partner, self.share, self.repeated = name, partner, share, repeated
        self.count = 0
        self._due = True

    def begin(self, module: nn.Module, args: Any) -> None:
        """A forward of the whole module begins: in it the layer is mixed at its first call, but not in an attack."""
        self._due = not in_inner_pass(module)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor | None:
        if not self._due:
            return None
        self._due = False
        self.count += 1
        size = len(self.partner)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            self._refuse(f"it is a {type(output).__name__}" if not isinstance(output, Tensor) else f"{output.dtype}")
        rows = len(output) if output.ndim else 0
        # A technique to the right may repeat the batch; its target is repeated too, so each copy has the same pairs.
        copies = rows // size if self.repeated else 1
        if rows != size * copies or not rows:
            self._refuse(f"its shape is {list(output.shape)}, but the first dimension must be the {size} samples")
        partner = self.partner.to(output.device)
        if copies > 1:
            partner = torch.cat([partner + size * copy for copy in range(copies)])
        return mix(output, partner, self.share)

    def _refuse(self, reason: str) -> None:
        raise InvalidValueError(
            f"ManifoldMixupMixin cannot mix the output of {self.name!r}: {reason}. Name layers in "
            "manifold_mixup_layers that return one floating tensor [N, ...]."
        )


def _every_layer(module: LightningModule) -> dict[str, Any]:
    layers = (child.named_modules(prefix=name) for name, child in student_children(module).items())
    return {"input": None, **dict(chain.from_iterable(layers))}
