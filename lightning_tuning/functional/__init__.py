"""Pure functions on tensors: the mathematics of the techniques. Nothing here knows Lightning."""

from .averaging import ModuleAverage, ema_decay, ema_update_
from .divergence import kl_divergence, symmetric_kl_divergence
from .entropy import entropy
from .flooding import flood
from .initialization import INIT_METHODS, activation_gain, init_weight_, is_orthonormal
from .mixing import mix, sample_beta
from .penalty import half_squared_distance, half_squared_norm, l1_norm
from .perturbation import asam_ascent, global_norm, sam_ascent
from .pseudo_label import fixmatch_loss
from .rng import RngState, get_rng_state, set_rng_state
from .targets import class_probabilities, smooth_labels

__all__ = [
    "INIT_METHODS",
    "ModuleAverage",
    "RngState",
    "activation_gain",
    "asam_ascent",
    "class_probabilities",
    "ema_decay",
    "ema_update_",
    "entropy",
    "fixmatch_loss",
    "flood",
    "get_rng_state",
    "global_norm",
    "half_squared_distance",
    "half_squared_norm",
    "init_weight_",
    "is_orthonormal",
    "kl_divergence",
    "l1_norm",
    "mix",
    "sam_ascent",
    "sample_beta",
    "set_rng_state",
    "smooth_labels",
    "symmetric_kl_divergence",
]
