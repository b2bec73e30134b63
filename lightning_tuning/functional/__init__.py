"""Pure functions on tensors: the mathematics of the techniques. Nothing here knows Lightning."""

from .averaging import ModuleAverage, ema_decay, ema_update_
from .constraint import max_norm_, power_iteration, spectral_norm
from .divergence import kl_divergence, symmetric_kl_divergence
from .dropping import drop_block, drop_block_gamma, drop_block_mask, drop_path, drop_rate
from .entropy import entropy
from .flooding import flood
from .input_gradient import gradient_penalty, input_gradients, interpolate, jacobian_penalty
from .mixing import Box, mix, paste, sample_beta, sample_box, squares
from .orthogonality import orthogonality
from .initialization import INIT_METHODS, activation_gain, init_weight_, is_orthonormal
from .mixing import mix, sample_beta
from .penalty import half_squared_distance, half_squared_norm, l1_norm
from .perturbation import asam_ascent, global_norm, sam_ascent, weight_noise
from .pseudo_label import fixmatch_loss
from .rng import RngState, get_rng_state, set_rng_state
from .targets import class_probabilities, smooth_labels

__all__ = [
    "INIT_METHODS",
    "ModuleAverage",
    "Box",
    "RngState",
    "activation_gain",
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
    "gradient_penalty",
    "half_squared_distance",
    "half_squared_norm",
    "input_gradients",
    "interpolate",
    "jacobian_penalty",
    "init_weight_",
    "is_orthonormal",
    "kl_divergence",
    "l1_norm",
    "max_norm_",
    "mix",
    "orthogonality",
    "power_iteration",
    "paste",
    "sam_ascent",
    "sample_beta",
    "sample_box",
    "set_rng_state",
    "smooth_labels",
    "spectral_norm",
    "squares",
    "symmetric_kl_divergence",
    "weight_noise",
]
