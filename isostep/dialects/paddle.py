"""How Paddle spells the rules. Source: Paddle 3.3, `paddle/optimizer/*.py`.

Which hyperparameters its kernels take as float32 was measured on the CPU, with float64 parameters.
"""

from __future__ import annotations

from isostep.dialects.base import REQUIRED, Averaging, Dialect, Spelling

_COMMON = {"lr": "learning_rate", "weight_decay": "weight_decay"}
_NO_DECAY = {"weight_decay": 0.0}
_ADAM_NAMES = _COMMON | {
    "beta1": "beta1",
    "beta2": "beta2",
    "eps": "epsilon",
    "amsgrad": "amsgrad",
}
_ADAM_DEFAULTS = {
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": None,
    "amsgrad": False,
}
_ADAM_SLOTS = {
    "exp_avg": "moment1",
    "exp_avg_sq": "moment2",
    "max_exp_avg_sq": "moment2_max",
}
_ADAM_FORMULA = "p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)"

SGD = Spelling(
    rule="SGD",
    class_name="SGD",
    names=_COMMON,
    defaults={"lr": 1e-3, "weight_decay": None},
    fixed={"buffer": "direction", "dampening": 0.0},
    none_means=_NO_DECAY,
    slots={"momentum_buffer": "velocity"},
    formula="p -= lr*g",
)

MOMENTUM = Spelling(
    rule="SGD",
    class_name="Momentum",
    names=_COMMON | {"momentum": "momentum", "nesterov": "use_nesterov"},
    defaults={"lr": 1e-3, "momentum": 0.9, "nesterov": False, "weight_decay": None},
    fixed=SGD.fixed,
    none_means=_NO_DECAY,
    slots=SGD.slots,
    in_float32=("momentum", "weight_decay"),
    formula="b = momentum*b + g; p -= lr*b (nesterov: lr*(g + momentum*b))",
)

ADAGRAD = Spelling(
    rule="Adagrad",
    class_name="Adagrad",
    names=_COMMON | {"eps": "epsilon", "initial_accumulator_value": "initial_accumulator_value"},
    defaults={
        "lr": REQUIRED,
        "eps": 1e-6,
        "weight_decay": None,
        "initial_accumulator_value": 0.0,
    },
    fixed={"eps_in_root": False, "lr_decay": 0.0},
    none_means=_NO_DECAY,
    slots={"sum": "moment"},
    in_float32=("eps",),
    formula="s += g^2; p -= lr*g / (sqrt(s) + eps)",
)

RMSPROP = Spelling(
    rule="RMSprop",
    class_name="RMSProp",
    names=_COMMON
    | {"alpha": "rho", "eps": "epsilon", "momentum": "momentum", "centered": "centered"},
    defaults={
        "lr": REQUIRED,
        "alpha": 0.95,
        "eps": 1e-6,
        "momentum": 0.0,
        "centered": False,
        "weight_decay": None,
    },
    fixed={"eps_in_root": True, "buffer": "step"},
    none_means=_NO_DECAY,
    slots={
        "square_avg": "mean_square",
        "grad_avg": "mean_grad",
        "momentum_buffer": "momentum",
    },
    in_float32=("alpha", "eps", "momentum"),
    formula="b = momentum*b + lr*g / sqrt(v [- gbar^2] + eps); p -= b",
    quirks=(
        "paddle-rmsprop-keeps-all-slots: Paddle keeps momentum and mean_grad also where neither "
        "is asked for",
    ),
)

ADADELTA = Spelling(
    rule="Adadelta",
    class_name="Adadelta",
    names=_COMMON | {"eps": "epsilon", "rho": "rho"},
    defaults={"lr": 1e-3, "eps": 1e-6, "rho": 0.95, "weight_decay": None},
    none_means=_NO_DECAY,
    slots={"square_avg": "_avg_squared_grad", "acc_delta": "_avg_squared_update"},
    in_float32=("rho", "eps"),
    formula="p -= lr * sqrt(D + eps)/sqrt(E + eps) * g",
)

ADAM = Spelling(
    rule="Adam",
    class_name="Adam",
    names=_ADAM_NAMES,
    defaults=_ADAM_DEFAULTS,
    fixed={"eps_hat": False, "max_of_corrected": False},
    none_means=_NO_DECAY,
    slots=_ADAM_SLOTS,
    formula=_ADAM_FORMULA,
)

ADAMW = Spelling(
    rule="AdamW",
    class_name="AdamW",
    names=_ADAM_NAMES,
    defaults=_ADAM_DEFAULTS | {"weight_decay": 0.01},
    fixed=ADAM.fixed,
    slots=_ADAM_SLOTS,
    in_float32=("weight_decay",),
    decay="decoupled",
    formula=_ADAM_FORMULA,
)

DIALECT = Dialect(
    name="paddle",
    spellings={
        spelling.class_name if spelling is MOMENTUM else spelling.rule: spelling
        for spelling in (SGD, MOMENTUM, ADAGRAD, RMSPROP, ADADELTA, ADAM, ADAMW)
    },
    absent={
        "Adafactor": "Paddle has no Adafactor: use the torch, keras, tf_keras or optax dialect",
    },
    clip_formulas={
        "value": "min(max(g, -value), value)",
        "norm": "g * norm/|g| where |g| > norm, one tensor at a time",
        "global_norm": "g * norm/max(|all g|, norm)",
    },
    averaging=Averaging(
        momentum=0.999,
        start="first_update",
        formula="none in dynamic graphs; isostep's: a = momentum*a + (1-momentum)*p",
        without_gradient=False,
    ),
    steps_per="parameter",
    other_arguments=(
        "parameters",
        "grad_clip",
        "multi_precision",
        "name",
        "rescale_grad",
        "use_multi_tensor",
        "lazy_mode",
        "use_lowprecision_moment",
        "lr_ratio",
        "apply_decay_param_fun",
    ),
    shard_marks={"is_distributed": "Paddle's tensor parallelism"},
    part_holders=(
        "DygraphShardingOptimizer",
        "DygraphShardingOptimizerV2",
        "GroupShardedOptimizerStage2",
        "GroupShardedStage3",
    ),
    extension_points=(
        "_add_accumulator",
        "_add_moments_pows",
        "_append_optimize_multi_tensor_op",
        "_append_optimize_op",
        "_apply_optimize",
        "_create_accumulators",
        "_create_global_learning_rate",
        "_create_master_weight",
        "_create_optimization_pass",
        "_create_param_lr",
        "_create_regularization_of_grad",
        "_finish_update",
        "_gen_master_weight_var_name",
        "_get_accumulator",
        "_get_accumulator_master",
        "_get_auxiliary_var",
        "_get_device_for_param",
        "_global_learning_rate",
        "_is_dtype_fp16_or_bf16",
        "_maybe_refuse",
        "_multi_tensor_init",
        "_pir_create_optimization_pass",
        "_update_param_device_map",
        "_update_param_group",
        "append_regularization_ops",
        "apply_gradients",
        "need_refuse",
    ),
    quirks=(
        "paddle-clip-by-norm-takes-float32: on the CPU ClipGradByNorm refuses float64 gradients",
        "paddle-global-norm-per-group: with groups ClipGradByGlobalNorm takes the norm of "
        "each group; isostep that of all groups with this clip, unless clip_per_group=True",
        "paddle-rescale-grad-on-gpu-only: on the CPU Momentum ignores rescale_grad; isostep "
        "multiplies everywhere, after clipping and before decay",
        "paddle-lr-ratio-on-gpu-only: on the CPU AdamW refuses lr_ratio; isostep scales the whole "
        "step by it everywhere, as the GPU kernel does",
        "paddle-adam-decays-no-rows: Adam with weight_decay refuses sparse gradients",
        "paddle-tensor-rate: a tensor in the place of a factor on the learning rate, of a group or "
        "a parameter, is the rate itself",
        "paddle-tensor-betas-start-at-defaults: with tensors for betas Paddle's powers begin at "
        "0.9 and 0.999, whatever the betas are; isostep's at the betas",
        "paddle-sparse-adam-counts-ahead: on the CPU the kernel for sparse gradients corrects the "
        "bias with the powers of the step after; isostep with those of the step",
    ),
)

STEPPED = {"Adam": "_parameter_list", "AdamW": "_parameter_list"}
"""The attribute that the step of a class takes parameters from, `_param_groups` in all others. If
dicts are in it, it takes them from `_param_groups` in each."""
