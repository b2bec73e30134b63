"""Stochastic depth: drop the residual branches of a model for whole samples."""

from __future__ import annotations

from typing import Any, Literal, get_args

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_tuning.errors import check_choice, check_range
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.injection import DropOutput, Injection, check_pattern, hookable_modules, named, no_match
from lightning_tuning.mixins.residual import Branch, batch_dim_within, residual_branches

Mode = Literal["linear", "uniform"]


class StochasticDepthMixin(TuningMixin):
    r"""Drops each residual branch for a random part of the samples (Huang et al., 2016), so that each sample trains a
    shallower network: ``x + b * branch(x) / (1 - p)`` with ``b`` in {0, 1}. In evaluation all branches are whole.

    It finds the branches itself, in any model whose blocks can be traced by ``torch.fx`` and in torch's transformer
    layers, and says at the start of training which they are and how often each is dropped.

    Args:
        stochastic_depth_rate: Probability that the last branch is dropped, in [0, 1); 0.1 for small to 0.5 for very
            deep networks. Off: 0.
        stochastic_depth_layers: Regular expression for the whole names of the modules whose output is a residual
            branch, such as ``network\.\d+\.bn2``, in place of those that are found. None: find them.
        stochastic_depth_mode: ``linear``: branch l of L is dropped with probability ``l / L`` times the rate, for the
            first ones make the features that all others use; ``uniform``: each with the rate.

    Raises:
        InvalidValueError: The rate, mode or regular expression is not allowed, or a named module returns no tensor.
        NoEffectError: At fit start: no residual branch was found.

    Source: Huang et al., 2016, "Deep networks with stochastic depth", equations 2 and 4. Drawn for each sample and not
    for each batch, and scaled in training instead of in evaluation.
    """

    stem = "stochastic_depth"
    stage = "layers"
    off = {"stochastic_depth_rate": 0.0}
    changes = ("activations",)
    sharded = True

    def __init__(
        self,
        *args: Any,
        stochastic_depth_rate: float = 0.1,
        stochastic_depth_layers: str | None = None,
        stochastic_depth_mode: Mode = "linear",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("stochastic_depth_rate", stochastic_depth_rate, 0.0, 1.0, open_high=True)
        check_pattern("stochastic_depth_layers", stochastic_depth_layers)
        check_choice("stochastic_depth_mode", stochastic_depth_mode, get_args(Mode))
        self.stochastic_depth_rate = stochastic_depth_rate
        self.stochastic_depth_layers = stochastic_depth_layers
        self.stochastic_depth_mode = stochastic_depth_mode
        self._stochastic_depth = Injection()
        self._stochastic_depth_missed: list[str] = []
        self._place_stochastic_depth()

    def configure_model(self) -> None:
        """Once more, for layers that were exchanged or built since ``__init__``."""
        super().configure_model()
        self._place_stochastic_depth()

    def _place_stochastic_depth(self) -> None:
        if self.stochastic_depth_rate == 0:
            return
        if self.stochastic_depth_layers is None:
            branches, self._stochastic_depth_missed = residual_branches(self)
        else:
            modules = {name: m for name, m in hookable_modules(self).items() if name}
            branches = {
                name: Branch(module, batch_dim_within(modules.get(name.rpartition(".")[0], module)))
                for name, module in named(modules, self.stochastic_depth_layers).items()
            }

        def make(place: int, name: str) -> DropOutput:
            share = place / len(branches) if self.stochastic_depth_mode == "linear" else 1.0
            return DropOutput(share * self.stochastic_depth_rate, branches[name].batch_dim, share)

        self._stochastic_depth.place(self, {name: branch.module for name, branch in branches.items()}, make)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        self._stochastic_depth.set_rate(self.stochastic_depth_rate)
        return super().on_train_batch_start(batch, batch_idx)

    def no_effect(self) -> str | None:
        if self._stochastic_depth.hooks:
            return None
        if self.stochastic_depth_layers is not None:
            names = [name for name in hookable_modules(self) if name]
            return no_match("stochastic_depth_layers", self.stochastic_depth_layers, names, "modules")
        return (
            f"no residual branch was found in {self._host_name}{self._missed_branches()}. Name the modules whose "
            "output is added to what went around them: stochastic_depth_layers='<regular expression for their names>'."
        )

    def _missed_branches(self) -> str:
        missed = self._stochastic_depth_missed
        return f" (the branches in {', '.join(missed)} do not end in a module of their own)" if missed else ""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        hooks = self._stochastic_depth.hooks
        if hooks:
            rates = ", ".join(f"{name} {hook.rate:.3g}" for name, hook in hooks.items())
            rank_zero_info(f"StochasticDepthMixin drops {rates}{self._missed_branches()}")
