"""Pure functions on tensors: the mathematics of the techniques. Nothing here knows Lightning."""

from .averaging import ModuleAverage, ema_decay, ema_update_
from .centralization import centralize_
from .clipping import NormHistory, adaptive_clip_, unit_norms
from .divergence import kl_divergence, symmetric_kl_divergence
from .entropy import entropy
from .flooding import flood
from .mixing import mix, sample_beta
from .noise import add_noise_, noise_std
from .penalty import half_squared_distance, half_squared_norm, l1_norm
from .perturbation import asam_ascent, global_norm, gsam_gradient_, sam_ascent
from .pseudo_label import fixmatch_loss
from .rng import RngState, get_rng_state, set_rng_state
from .scaling import step_was_skipped
from .targets import class_probabilities, smooth_labels

__all__ = [
    "ModuleAverage",
    "NormHistory",
    "RngState",
    "adaptive_clip_",
    "add_noise_",
    "asam_ascent",
    "centralize_",
    "class_probabilities",
    "ema_decay",
    "ema_update_",
    "entropy",
    "fixmatch_loss",
    "flood",
    "get_rng_state",
    "global_norm",
    "gsam_gradient_",
    "half_squared_distance",
    "half_squared_norm",
    "kl_divergence",
    "l1_norm",
    "mix",
    "noise_std",
    "sam_ascent",
    "sample_beta",
    "set_rng_state",
    "smooth_labels",
    "step_was_skipped",
    "symmetric_kl_divergence",
    "unit_norms",
]
