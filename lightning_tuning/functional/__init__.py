"""Pure functions on tensors: the mathematics of the techniques. Nothing here knows Lightning."""

from .attack import (
    Norm,
    PixelScale,
    Start,
    ascent_direction,
    default_step_size,
    error_odds,
    in_inputs,
    in_pixels,
    perturbation_norms,
    project,
    projected_ascent,
    start_of,
)
from .averaging import ModuleAverage, ema_decay, ema_update_, half_life_decay
from .batch_augment import batch_crop, batch_erase, batch_flip, crop_boxes, flip_boxes, fused_normalize
from .batch_norm import is_batch_norm, population_statistics, recalibrate_batch_norm, tracking_batch_norms
from .centralization import centralize_
from .clipping import NormHistory, adaptive_clip_, unit_norms
from .consistency import ensemble_target, mean_teacher_loss, squared_difference, temporal_ensembling_loss
from .constraint import max_norm_, power_iteration, spectral_norm
from .cycles import cycle_factor, cycle_length
from .distillation import (
    Decoupled,
    blend_targets,
    decoupled_distillation,
    disagreement,
    distillation_loss,
    feature_distance,
)
from .divergence import kl_divergence, logit_distance, symmetric_kl_divergence
from .dropping import drop_block, drop_block_gamma, drop_block_mask, drop_path, drop_rate
from .ensemble import ensemble_logits, prediction_quality, prediction_sums
from .entropy import entropy
from .flooding import flood
from .focal import sigmoid_focal, softmax_focal
from .gating import (
    ANNEALINGS,
    align,
    class_fairness,
    curriculum_thresholds,
    falling_threshold,
    self_adaptive_thresholds,
    signal_annealing,
    truncated_gaussian,
)
from .initialization import INIT_METHODS, activation_gain, init_weight_, is_orthonormal
from .input_gradient import gradient_penalty, input_gradients, interpolate, jacobian_penalty
from .interpolation import interpolation_consistency
from .keyed_random import keyed_bits, keyed_uniform
from .lr_range import lr_sweep, suggest_lr
from .magnitude import magnitude_counts
from .mart import mart_divergence, mart_margin
from .mixing import Box, dominant_shares, mix, paste, sample_beta, sample_box, squares
from .mixmatch import mixmatch_loss, rotate_quarters
from .modes import evaluating
from .noise import add_noise_, noise_std
from .orthogonality import orthogonality
from .penalty import half_squared_distance, half_squared_norm, l1_norm
from .perturbation import asam_ascent, awp_ascent, global_norm, gsam_gradient_, sam_ascent, weight_noise
from .power_average import LARGEST_SIGMA_REL, gamma_of, power_decay, power_shares, sigma_rel_of
from .precision import without_graph
from .pseudo_label import at_least, hard, pseudo_label_loss, sharpen, soft
from .ramp import ramp_factor
from .random_augment import Boxes, random_crop, random_erase, random_flip, sample_erasing, sample_flips, sample_shifts
from .rng import RngState, get_rng_state, set_rng_state
from .samples import of_samples, random_directions, sample_norms, unit_samples
from .scaling import step_was_skipped
from .soup import StateMean, greedy_soup, uniform_soup
from .spike import spike_threshold
from .streams import has_streams, labeled_part
from .targets import class_probabilities, counted, smooth_labels
from .term_watch import TermWatch
from .unit_health import idle_units, moments, off_below, run_lengths, saturated
from .virtual_adversarial import fisher_product, softmax_curvature
from .weight_average import Trained, WeightAverage, assign_, parts_named, reshard, trained_parts

__all__ = [
    "ANNEALINGS",
    "INIT_METHODS",
    "LARGEST_SIGMA_REL",
    "Box",
    "Boxes",
    "Decoupled",
    "ModuleAverage",
    "Norm",
    "NormHistory",
    "PixelScale",
    "RngState",
    "Start",
    "StateMean",
    "TermWatch",
    "Trained",
    "WeightAverage",
    "activation_gain",
    "adaptive_clip_",
    "add_noise_",
    "align",
    "asam_ascent",
    "ascent_direction",
    "assign_",
    "at_least",
    "awp_ascent",
    "batch_crop",
    "batch_erase",
    "batch_flip",
    "blend_targets",
    "centralize_",
    "class_fairness",
    "class_probabilities",
    "counted",
    "crop_boxes",
    "curriculum_thresholds",
    "cycle_factor",
    "cycle_length",
    "decoupled_distillation",
    "default_step_size",
    "disagreement",
    "distillation_loss",
    "dominant_shares",
    "drop_block",
    "drop_block_gamma",
    "drop_block_mask",
    "drop_path",
    "drop_rate",
    "ema_decay",
    "ema_update_",
    "ensemble_logits",
    "ensemble_target",
    "entropy",
    "error_odds",
    "evaluating",
    "falling_threshold",
    "feature_distance",
    "fisher_product",
    "flip_boxes",
    "flood",
    "fused_normalize",
    "gamma_of",
    "get_rng_state",
    "global_norm",
    "gradient_penalty",
    "greedy_soup",
    "gsam_gradient_",
    "half_life_decay",
    "half_squared_distance",
    "half_squared_norm",
    "hard",
    "has_streams",
    "idle_units",
    "in_inputs",
    "in_pixels",
    "init_weight_",
    "input_gradients",
    "interpolate",
    "interpolation_consistency",
    "is_batch_norm",
    "is_orthonormal",
    "jacobian_penalty",
    "keyed_bits",
    "keyed_uniform",
    "kl_divergence",
    "l1_norm",
    "labeled_part",
    "logit_distance",
    "lr_sweep",
    "magnitude_counts",
    "mart_divergence",
    "mart_margin",
    "max_norm_",
    "mean_teacher_loss",
    "mix",
    "mixmatch_loss",
    "moments",
    "noise_std",
    "of_samples",
    "off_below",
    "orthogonality",
    "parts_named",
    "paste",
    "perturbation_norms",
    "population_statistics",
    "power_decay",
    "power_iteration",
    "power_shares",
    "prediction_quality",
    "prediction_sums",
    "project",
    "projected_ascent",
    "pseudo_label_loss",
    "ramp_factor",
    "random_crop",
    "random_directions",
    "random_erase",
    "random_flip",
    "recalibrate_batch_norm",
    "reshard",
    "rotate_quarters",
    "run_lengths",
    "sam_ascent",
    "sample_beta",
    "sample_box",
    "sample_erasing",
    "sample_flips",
    "sample_norms",
    "sample_shifts",
    "saturated",
    "self_adaptive_thresholds",
    "set_rng_state",
    "sharpen",
    "sigma_rel_of",
    "sigmoid_focal",
    "signal_annealing",
    "smooth_labels",
    "soft",
    "softmax_curvature",
    "softmax_focal",
    "spectral_norm",
    "spike_threshold",
    "squared_difference",
    "squares",
    "start_of",
    "step_was_skipped",
    "suggest_lr",
    "symmetric_kl_divergence",
    "temporal_ensembling_loss",
    "tracking_batch_norms",
    "trained_parts",
    "truncated_gaussian",
    "uniform_soup",
    "unit_norms",
    "unit_samples",
    "weight_noise",
    "without_graph",
]
