"""How Keras 3 spells the rules. Source: Keras 3.15, `keras/src/optimizers/*.py`."""

from __future__ import annotations

from isostep.dialects.base import Averaging, Dialect, Spelling

_COMMON = {"lr": "learning_rate", "weight_decay": "weight_decay"}
_NO_DECAY = {"weight_decay": 0.0}
_ADAM_NAMES = _COMMON | {
    "beta1": "beta_1",
    "beta2": "beta_2",
    "eps": "epsilon",
    "amsgrad": "amsgrad",
}
_ADAM_DEFAULTS = {
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-7,
    "weight_decay": None,
    "amsgrad": False,
}
_ADAM_SLOTS = {
    "exp_avg": "momentum",
    "exp_avg_sq": "velocity",
    "max_exp_avg_sq": "velocity_hat",
}
_ADAM_FORMULA = "p -= lr*sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) + eps)"
_POWERS = (
    "keras-adam-powers-in-variable-dtype: the powers of the betas are computed in the dtype of the "
    "variable, so one minus them loses digits at small t",
)

SGD = Spelling(
    rule="SGD",
    class_name="SGD",
    names=_COMMON | {"momentum": "momentum", "nesterov": "nesterov"},
    defaults={"lr": 0.01, "momentum": 0.0, "nesterov": False, "weight_decay": None},
    fixed={"buffer": "update", "dampening": 0.0},
    none_means=_NO_DECAY,
    slots={"momentum_buffer": "momentum"},
    decay="decoupled",
    decay_first=True,
    formula="b = momentum*b - lr*g; p += b (nesterov: momentum*b - lr*g)",
)

ADAGRAD = Spelling(
    rule="Adagrad",
    class_name="Adagrad",
    names=_COMMON | {"initial_accumulator_value": "initial_accumulator_value", "eps": "epsilon"},
    defaults={
        "lr": 1e-3,
        "initial_accumulator_value": 0.1,
        "eps": 1e-7,
        "weight_decay": None,
    },
    fixed={"eps_in_root": True, "lr_decay": 0.0},
    none_means=_NO_DECAY,
    slots={"sum": "accumulator"},
    decay="decoupled",
    decay_first=True,
    formula="s += g^2; p -= lr*g / sqrt(s + eps)",
)

RMSPROP = Spelling(
    rule="RMSprop",
    class_name="RMSprop",
    names=_COMMON
    | {"alpha": "rho", "momentum": "momentum", "eps": "epsilon", "centered": "centered"},
    defaults={
        "lr": 1e-3,
        "alpha": 0.9,
        "momentum": 0.0,
        "eps": 1e-7,
        "centered": False,
        "weight_decay": None,
    },
    fixed={"eps_in_root": True, "buffer": "step"},
    none_means=_NO_DECAY,
    slots={
        "square_avg": "velocity",
        "grad_avg": "average_gradient",
        "momentum_buffer": "momentum",
    },
    decay="decoupled",
    decay_first=True,
    formula="b = momentum*b + lr*g / sqrt(v [- gbar^2] + eps); p -= b",
)

ADADELTA = Spelling(
    rule="Adadelta",
    class_name="Adadelta",
    names=_COMMON | {"rho": "rho", "eps": "epsilon"},
    defaults={"lr": 1e-3, "rho": 0.95, "eps": 1e-7, "weight_decay": None},
    none_means=_NO_DECAY,
    slots={"square_avg": "accumulated_grad", "acc_delta": "accumulated_delta_var"},
    decay="decoupled",
    decay_first=True,
    formula="p -= lr * sqrt(D + eps)/sqrt(E + eps) * g",
)

ADAM = Spelling(
    rule="Adam",
    class_name="Adam",
    names=_ADAM_NAMES,
    defaults=_ADAM_DEFAULTS,
    fixed={"eps_hat": True, "max_of_corrected": False},
    none_means=_NO_DECAY,
    slots=_ADAM_SLOTS,
    decay="decoupled",
    decay_first=True,
    formula=_ADAM_FORMULA,
    quirks=_POWERS,
)

ADAMW = Spelling(
    rule="AdamW",
    class_name="AdamW",
    names=_ADAM_NAMES,
    defaults=_ADAM_DEFAULTS | {"weight_decay": 0.004},
    fixed=ADAM.fixed,
    slots=_ADAM_SLOTS,
    decay="decoupled",
    decay_first=True,
    formula=_ADAM_FORMULA,
    quirks=_POWERS,
)

ADAFACTOR = Spelling(
    rule="Adafactor",
    class_name="Adafactor",
    names=_COMMON
    | {
        "decay_rate": "beta_2_decay",
        "eps1": "epsilon_1",
        "eps2": "epsilon_2",
        "clip_threshold": "clip_threshold",
        "relative_step": "relative_step",
    },
    defaults={
        "lr": 1e-3,
        "decay_rate": -0.8,
        "eps1": 1e-30,
        "eps2": 1e-3,
        "clip_threshold": 1.0,
        "relative_step": True,
        "weight_decay": None,
    },
    negated=("decay_rate",),
    none_means=_NO_DECAY,
    without_effect=("relative_step",),
    fixed={
        "clamp_eps": False,
        "nan_rms_is_small": False,
        "parameter_scale": True,
        "factored": True,
        "largest_axes": False,
        "min_dim_to_factor": 0,
    },
    slots={"row": "r", "column": "c", "exp_avg_sq": "velocity"},
    decay="decoupled",
    decay_first=True,
    formula=(
        "p -= min(lr, 1/sqrt(t)) * max(eps2, RMS(p)) * U / max(1, RMS(U)/clip_threshold); "
        "U = g / sqrt(v); v = r*c / mean r, of g^2 + eps1"
    ),
    quirks=(
        "keras-adafactor-relative-step-has-no-effect: the learning rate is capped at 1/sqrt(t) "
        "with relative_step=False as well, and under a schedule",
        "keras-adafactor-stores-full-second-moment: Keras also keeps v of the variable's shape, "
        "computed anew from the factors in each step; isostep keeps the factors only",
        "keras-adafactor-means-in-float32: on the JAX and torch backends every mean is a float32, "
        "also of float64 variables",
        "keras-adafactor-decay-in-variable-dtype: t^beta_2_decay and 1/sqrt(t) are computed in "
        "the dtype of the variable",
    ),
)

EXTENSION_POINTS = (
    "update_step",
    "assign",
    "assign_add",
    "assign_sub",
    "iterations",
    "learning_rate",
    "_all_reduce_sum_gradients",
    "_apply_weight_decay",
    "_backend_increment_gradient_accumulators",
    "_backend_reset_gradient_accumulators",
    "_backend_update_step",
    "_clip_by_norm",
    "_clip_gradients",
    "_distributed_tf_update_step",
    "_get_current_learning_rate",
    "_get_variable_index",
    "_overwrite_model_variables_with_average_value",
    "_rms",
    "_update_model_variables_moving_average",
    "_use_weight_decay",
    "_var_key",
    # What makes the variables: Adafactor has fewer of them here.
    "add_variable",
    "add_variable_from_reference",
    "_overwrite_variable_with_gradient",
    "_track_variable",
)
"""Methods and properties of `BaseOptimizer`, of its backends' classes and of Keras' own rules."""

KEEPS_OTHER_SUMS = ("jax",)
"""Backends where a step of accumulated gradients leaves the sums of variables that have no gradient
in the last call; on the others it sets all to zero."""

DIALECT = Dialect(
    name="keras",
    spellings={
        spelling.rule: spelling
        for spelling in (SGD, ADAGRAD, RMSPROP, ADADELTA, ADAM, ADAMW, ADAFACTOR)
    },
    clip_formulas={
        "value": "min(max(g, -value), value)",
        "norm": "g * norm/max(|g|, norm), one tensor at a time",
        "global_norm": "g * min(1, norm/|all g|); all NaN if the norm is infinite",
    },
    inf_norm_is_nan=("global_norm",),
    averaging=Averaging(
        momentum=0.99,
        start="first_update",
        formula="a = momentum*a + (1-momentum)*p, of every trainable variable",
        without_gradient=True,
    ),
    steps_per="optimizer",
    other_arguments=(
        "clipnorm",
        "clipvalue",
        "global_clipnorm",
        "use_ema",
        "ema_momentum",
        "ema_overwrite_frequency",
        "loss_scale_factor",
        "gradient_accumulation_steps",
        "name",
        "kwargs",
    ),
    extension_points=EXTENSION_POINTS,
    quirks=(
        "keras-learning-rate-in-floatx: the learning rate is held in floatx, which is float32 by "
        "default, whatever the dtype of the variables",
        "keras-casts-through-float32: on the TensorFlow backend a number that Keras casts to the "
        "dtype of a variable is rounded to float32 first: weight decay, the momentum of SGD, the "
        "betas of Adam in their powers, the initial accumulator of Adagrad, epsilon_2 of Adafactor",
        "keras-norm-clips-in-float32: on the torch backend the norms that clipnorm and "
        "global_clipnorm compare are float32, also of float64 gradients",
        "keras-resets-all-sums: a step of accumulated gradients forgets what was summed for a "
        "variable that has no gradient in its last call, but on the JAX backend",
        "keras-decay-before-update: weight decay is decoupled in every rule and is applied before "
        "the rule reads the variable",
    ),
)
