"""How optax spells the rules. Source: optax 0.2.8, `alias.py`, `transform.py`, `factorized.py`."""

from __future__ import annotations

from dataclasses import replace

from isostep.dialects.base import REQUIRED, Averaging, Dialect, Spelling

_ADAM_NAMES = {
    "lr": "learning_rate",
    "beta1": "b1",
    "beta2": "b2",
    "eps": "eps",
    "eps_root": "eps_root",
}
_ADAM_DEFAULTS = {"lr": REQUIRED, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "eps_root": 0.0}
_ADAM_FORMULA = "p -= lr * m/(1-b1^t) / (sqrt(v/(1-b2^t) + eps_root) + eps)"
_POWERS = (
    "optax-adam-powers-in-float32: without jax_enable_x64 the powers of the betas are float32, so "
    "one minus them loses digits at small t",
)

SGD = Spelling(
    rule="SGD",
    class_name="sgd",
    names={"lr": "learning_rate", "momentum": "momentum", "nesterov": "nesterov"},
    defaults={"lr": REQUIRED, "momentum": None, "nesterov": False},
    fixed={"buffer": "direction", "dampening": 0.0},
    none_means={"momentum": 0.0},
    slots={"momentum_buffer": "trace"},
    formula="b = momentum*b + g; p -= lr*b (nesterov: lr*(g + momentum*b))",
)

ADAGRAD = Spelling(
    rule="Adagrad",
    class_name="adagrad",
    names={
        "lr": "learning_rate",
        "initial_accumulator_value": "initial_accumulator_value",
        "eps": "eps",
    },
    defaults={"lr": REQUIRED, "initial_accumulator_value": 0.1, "eps": 1e-7},
    fixed={"eps_in_root": True, "zero_where_empty": True, "lr_decay": 0.0},
    slots={"sum": "sum_of_squares"},
    formula="s += g^2; p -= lr*g / sqrt(s + eps) where s > 0",
    quirks=("optax-adagrad-zero-where-empty: the update is zero where the sum of squares is zero",),
)

RMSPROP = Spelling(
    rule="RMSprop",
    class_name="rmsprop",
    names={
        "lr": "learning_rate",
        "alpha": "decay",
        "eps": "eps",
        "initial_scale": "initial_scale",
        "eps_in_root": "eps_in_sqrt",
        "centered": "centered",
        "momentum": "momentum",
        "nesterov": "nesterov",
        "bias_correction": "bias_correction",
    },
    defaults={
        "lr": REQUIRED,
        "alpha": 0.9,
        "eps": 1e-8,
        "initial_scale": 0.0,
        "eps_in_root": True,
        "centered": False,
        "momentum": None,
        "nesterov": False,
        "bias_correction": False,
    },
    fixed={"buffer": "update"},
    none_means={"momentum": 0.0},
    slots={"square_avg": "nu", "grad_avg": "mu", "momentum_buffer": "trace"},
    formula=(
        "d = -lr*g / sqrt(v [- gbar^2] + eps); b = momentum*b + d; p += b "
        "(nesterov: momentum*b + d)"
    ),
)

ADADELTA = Spelling(
    rule="Adadelta",
    class_name="adadelta",
    names={"lr": "learning_rate", "rho": "rho", "eps": "eps", "weight_decay": "weight_decay"},
    defaults={"lr": REQUIRED, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0},
    none_means={"lr": -1.0},
    slots={"square_avg": "e_g", "acc_delta": "e_x"},
    formula="p -= lr * sqrt(D + eps)/sqrt(E + eps) * g",
    quirks=(
        "optax-adadelta-climbs-without-learning-rate: learning_rate=None, the default, leaves the "
        "sign of the update as it is, so the loss rises: a learning rate of -1; isostep asks for a "
        "learning rate, except where optax' own function does not",
    ),
)

ADAM = Spelling(
    rule="Adam",
    class_name="adam",
    names=_ADAM_NAMES | {"nesterov": "nesterov"},
    defaults=_ADAM_DEFAULTS | {"nesterov": False},
    fixed={"eps_hat": False, "max_of_corrected": True},
    slots={"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"},
    formula=_ADAM_FORMULA,
    quirks=_POWERS,
)

AMSGRAD = replace(
    ADAM,
    class_name="amsgrad",
    names=_ADAM_NAMES,
    defaults=_ADAM_DEFAULTS,
    fixed={**ADAM.fixed, "amsgrad": True},
    unsupported={"bias_correction_mu": True, "bias_correction_nu": True},
    formula="p -= lr * m/(1-b1^t) / (sqrt(max over steps of v/(1-b2^t) + eps_root) + eps)",
    quirks=(
        *_POWERS,
        "optax-amsgrad-maximum-of-corrected: the maximum is over the corrected second moments, "
        "which fall, where other frameworks take it over the raw ones",
    ),
)

ADAMW = replace(
    ADAM,
    rule="AdamW",
    class_name="adamw",
    names={**ADAM.names, "weight_decay": "weight_decay"},
    defaults={**ADAM.defaults, "weight_decay": 1e-4},
    decay="decoupled",
)

ADAFACTOR = Spelling(
    rule="Adafactor",
    class_name="adafactor",
    names={
        "lr": "learning_rate",
        "min_dim_to_factor": "min_dim_size_to_factor",
        "decay_rate": "decay_rate",
        "decay_offset": "decay_offset",
        "parameter_scale": "multiply_by_parameter_scale",
        "clip_threshold": "clipping_threshold",
        "momentum": "momentum",
        "weight_decay": "weight_decay_rate",
        "eps1": "eps",
        "factored": "factored",
    },
    defaults={
        "lr": None,
        "min_dim_to_factor": 128,
        "decay_rate": 0.8,
        "decay_offset": 0,
        "parameter_scale": True,
        "clip_threshold": 1.0,
        "momentum": None,
        "weight_decay": None,
        "eps1": 1e-30,
        "factored": True,
    },
    none_means={"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0},
    fixed={
        "relative_step": False,
        "largest_axes": True,
        "clamp_eps": False,
        "nan_rms_is_small": False,
        "eps2": 1e-3,
    },
    slots={"row": "v_row", "column": "v_col", "exp_avg_sq": "v", "exp_avg": "ema"},
    decay="decoupled",
    decay_times_lr=False,
    formula=(
        "p -= lr * max(1e-3, RMS(p)) * U / max(1, RMS(U)/clipping_threshold), averaged with "
        "momentum; U = g / sqrt(v); v = r*c / mean r, of g^2 + eps"
    ),
    quirks=(
        "optax-adafactor-decay-rate-in-float32: 1 - t^-decay_rate is computed in float32 also for "
        "float64 parameters",
        "optax-adafactor-momentum-in-float32: the average of the updates is stored in "
        "dtype_momentum, float32 by default, also for float64 parameters",
        "optax-adafactor-decay-without-learning-rate: weight_decay_rate is not multiplied by the "
        "learning rate",
    ),
)

DIALECT = Dialect(
    name="optax",
    spellings={
        spelling.class_name if spelling is AMSGRAD else spelling.rule: spelling
        for spelling in (SGD, ADAGRAD, RMSPROP, ADADELTA, ADAM, AMSGRAD, ADAMW, ADAFACTOR)
    },
    clip_formulas={
        "value": "min(max(g, -value), value)",
        "norm": "none; isostep's: as global_norm, one tensor at a time",
        "global_norm": "g where |all g| < norm, else g/|all g| * norm",
    },
    averaging=Averaging(
        momentum=0.99,
        start="first_update",
        formula="incremental_update, called by the user: a = momentum*a + (1-momentum)*p",
        without_gradient=True,
    ),
    steps_per="optimizer",
    complex_moduli=True,
    schedule_counts={"ScaleByScheduleState": "lr", "WeightDecaySchedule": "weight_decay"},
    other_arguments=(
        "accumulator_dtype",
        "mu_dtype",
        "mask",
        "dtype_momentum",
        "weight_decay_mask",
    ),
)
