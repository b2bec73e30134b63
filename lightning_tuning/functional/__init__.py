"""Pure functions on tensors: the mathematics of the techniques. Nothing here knows Lightning."""

from .averaging import ModuleAverage, ema_decay, ema_update_
from .divergence import kl_divergence, symmetric_kl_divergence
from .dropping import drop_block, drop_block_gamma, drop_block_mask, drop_path, drop_rate
from .entropy import entropy
from .flooding import flood
from .mixing import mix, sample_beta
from .penalty import half_squared_distance, half_squared_norm, l1_norm
from .perturbation import asam_ascent, global_norm, sam_ascent, weight_noise
from .pseudo_label import fixmatch_loss
from .rng import RngState, get_rng_state, set_rng_state
from .targets import class_probabilities, smooth_labels

__all__ = [
    "ModuleAverage",
    "RngState",
    "asam_ascent",
    "class_probabilities",
    "drop_block",
    "drop_block_gamma",
    "drop_block_mask",
    "drop_path",
    "drop_rate",
    "ema_decay",
    "ema_update_",
    "entropy",
    "fixmatch_loss",
    "flood",
    "get_rng_state",
    "global_norm",
    "half_squared_distance",
    "half_squared_norm",
    "kl_divergence",
    "l1_norm",
    "mix",
    "sam_ascent",
    "sample_beta",
    "set_rng_state",
    "smooth_labels",
    "symmetric_kl_divergence",
    "weight_noise",
]
