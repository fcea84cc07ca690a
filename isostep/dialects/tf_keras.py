"""How tf_keras (Keras 2) spells the rules: what differs from Keras 3, over `dialects/keras.py`.

Source: tf_keras 2.21, `tf_keras/src/optimizers/*.py`.
"""

from __future__ import annotations

from dataclasses import replace

from isostep.dialects import keras
from isostep.dialects.base import Averaging, Dialect

_ADAM_SLOTS = {"exp_avg": "m", "exp_avg_sq": "v", "max_exp_avg_sq": "vhat"}
_POWERS = (
    "tf_keras-adam-powers-in-variable-dtype: the powers of the betas are computed in the dtype of "
    "the variable, from betas rounded to float32, so one minus them loses digits at small t",
)

SGD = replace(
    keras.SGD,
    slots={"momentum_buffer": "m"},
    in_float32=("momentum", "weight_decay"),
    quirks=("tf_keras-sgd-always-keeps-m: the slot m exists, and holds -lr*g, without momentum",),
)

ADAGRAD = replace(keras.ADAGRAD, in_float32=("weight_decay",))

RMSPROP = replace(
    keras.RMSPROP,
    in_float32=("weight_decay",),
    average_every=100,
    quirks=(
        "tf_keras-rmsprop-overwrites-every-100: ema_overwrite_frequency is 100 by default here "
        "and None in every other class",
    ),
)

ADADELTA = replace(keras.ADADELTA, in_float32=("weight_decay",))

ADAM = replace(
    keras.ADAM,
    names={**keras.ADAM.names, "eps_hat": "adaptive_epsilon"},
    defaults={**keras.ADAM.defaults, "eps_hat": False},
    negated=("eps_hat",),
    fixed={"max_of_corrected": False},
    slots=_ADAM_SLOTS,
    in_float32=("weight_decay",),
    formula=f"{keras.ADAM.formula} (adaptive_epsilon: sqrt(v) + eps*sqrt(1-b2^t))",
    quirks=(
        *_POWERS,
        "tf_keras-adam-config-drops-adaptive-epsilon: get_config leaves out adaptive_epsilon, so "
        "a reloaded optimizer has False",
    ),
)

ADAMW = replace(keras.ADAMW, slots=_ADAM_SLOTS, in_float32=("weight_decay",), quirks=_POWERS)

ADAFACTOR = replace(
    keras.ADAFACTOR,
    slots={"row": "r", "column": "c", "exp_avg_sq": "v"},
    in_float32=("eps2", "weight_decay"),
    quirks=(
        "tf_keras-adafactor-relative-step-has-no-effect: the learning rate is capped at 1/sqrt(t) "
        "with relative_step=False as well, and under a schedule",
        "tf_keras-adafactor-stores-full-second-moment: tf_keras also keeps v of the variable's "
        "shape, computed anew from the factors in each step; isostep keeps the factors only",
        "tf_keras-adafactor-decay-in-variable-dtype: t^beta_2_decay and 1/sqrt(t) are computed in "
        "the dtype of the variable",
    ),
)

EXTENSION_POINTS = (
    "update_step",
    "iterations",
    "learning_rate",
    "_apply_weight_decay",
    "_clip_gradients",
    "_deduplicate_sparse_grad",
    "_distributed_apply_gradients_fn",
    "_internal_apply_gradients",
    "_overwrite_model_variables_with_average_value",
    "_rms",
    "_update_model_variables_moving_average",
    "_update_step",
    "_update_step_xla",
    "_use_weight_decay",
    "_var_key",
    # What makes the variables: SGD and Adafactor have fewer of them here.
    "add_variable",
    "add_variable_from_reference",
    "_build_index_dict",
)
"""Methods and properties of `Optimizer` and of tf_keras' own rules."""

DIALECT = Dialect(
    name="tf_keras",
    spellings={
        spelling.rule: spelling
        for spelling in (SGD, ADAGRAD, RMSPROP, ADADELTA, ADAM, ADAMW, ADAFACTOR)
    },
    clip_formulas=keras.DIALECT.clip_formulas,
    inf_norm_is_nan=keras.DIALECT.inf_norm_is_nan,
    averaging=Averaging(
        momentum=0.99,
        start="initial",
        formula="a = momentum*a + (1-momentum)*p, of the variables that had a gradient",
        without_gradient=False,
    ),
    steps_per="optimizer",
    other_arguments=(
        "clipnorm",
        "clipvalue",
        "global_clipnorm",
        "use_ema",
        "ema_momentum",
        "ema_overwrite_frequency",
        "jit_compile",
        "name",
        "kwargs",
    ),
    extension_points=EXTENSION_POINTS,
    quirks=(
        "tf_keras-learning-rate-in-floatx: the learning rate is held in floatx, which is float32 "
        "by default, whatever the dtype of the variables",
        "tf_keras-decay-before-update: weight decay is decoupled in every rule and is applied "
        "before the rule reads the variable",
        "tf_keras-clipvalue-beside-norm-is-ignored: clipnorm comes first, then global_clipnorm, "
        "then clipvalue; only one of them acts",
    ),
)
