"""How `torch.optim` spells the rules. Source: PyTorch 2.13, `torch/optim/*.py`."""

from __future__ import annotations

from isostep.dialects.base import Averaging, Dialect, PartGroup, Spelling

_COMMON = {"lr": "lr", "weight_decay": "weight_decay"}
_ADAM_NAMES = _COMMON | {
    "beta1": "betas[0]",
    "beta2": "betas[1]",
    "eps": "eps",
    "amsgrad": "amsgrad",
}
_ADAM_DEFAULTS = {
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0,
    "amsgrad": False,
}
_ADAM_SLOTS = {
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
    "max_exp_avg_sq": "max_exp_avg_sq",
}
_ADAM_FORMULA = "p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)"

SGD = Spelling(
    rule="SGD",
    class_name="SGD",
    names=_COMMON | {"momentum": "momentum", "dampening": "dampening", "nesterov": "nesterov"},
    defaults={"lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False},
    fixed={"buffer": "direction"},
    slots={"momentum_buffer": "momentum_buffer"},
    formula="b = momentum*b + (1-dampening)*g; p -= lr*b (nesterov: lr*(g + momentum*b))",
    quirks=(
        "torch-sgd-first-gradient-undampened: the first gradient of a parameter becomes its "
        "buffer without dampening",
        "torch-sgd-infinite-complex: a complex gradient of which one part is infinite makes the "
        "other part of the parameter NaN, by a product of complex numbers; isostep steps the parts",
    ),
)

ADAGRAD = Spelling(
    rule="Adagrad",
    class_name="Adagrad",
    names=_COMMON
    | {
        "lr_decay": "lr_decay",
        "initial_accumulator_value": "initial_accumulator_value",
        "eps": "eps",
    },
    defaults={
        "lr": 1e-2,
        "lr_decay": 0,
        "weight_decay": 0,
        "initial_accumulator_value": 0,
        "eps": 1e-10,
    },
    fixed={"eps_in_root": False},
    slots={"sum": "sum"},
    formula="s += g^2; p -= lr/(1+(t-1)*lr_decay) * g / (sqrt(s) + eps)",
)

RMSPROP = Spelling(
    rule="RMSprop",
    class_name="RMSprop",
    names=_COMMON
    | {"alpha": "alpha", "eps": "eps", "momentum": "momentum", "centered": "centered"},
    defaults={
        "lr": 1e-2,
        "alpha": 0.99,
        "eps": 1e-8,
        "weight_decay": 0,
        "momentum": 0,
        "centered": False,
    },
    fixed={"eps_in_root": False, "buffer": "direction"},
    slots={
        "square_avg": "square_avg",
        "grad_avg": "grad_avg",
        "momentum_buffer": "momentum_buffer",
    },
    formula="b = momentum*b + g / (sqrt(v [- gbar^2]) + eps); p -= lr*b",
    quirks=(
        "torch-rmsprop-centered-unclamped: v - gbar^2 may round below zero, and its root is NaN",
    ),
)

ADADELTA = Spelling(
    rule="Adadelta",
    class_name="Adadelta",
    names=_COMMON | {"rho": "rho", "eps": "eps"},
    defaults={"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0},
    slots={"square_avg": "square_avg", "acc_delta": "acc_delta"},
    formula="p -= lr * sqrt(D + eps)/sqrt(E + eps) * g",
)

ADAM = Spelling(
    rule="Adam",
    class_name="Adam",
    names=_ADAM_NAMES,
    defaults=_ADAM_DEFAULTS,
    fixed={"eps_hat": False, "max_of_corrected": False},
    slots=_ADAM_SLOTS,
    formula=_ADAM_FORMULA,
)

ADAMW = Spelling(
    rule="AdamW",
    class_name="AdamW",
    names=_ADAM_NAMES,
    defaults=_ADAM_DEFAULTS | {"weight_decay": 1e-2},
    fixed=ADAM.fixed,
    slots=_ADAM_SLOTS,
    decay="decoupled",
    formula=_ADAM_FORMULA,
)

ADAFACTOR = Spelling(
    rule="Adafactor",
    class_name="Adafactor",
    names=_COMMON
    | {
        "decay_rate": "beta2_decay",
        "eps1": "eps[0]",
        "eps2": "eps[1]",
        "clip_threshold": "d",
    },
    defaults={
        "lr": 1e-2,
        "decay_rate": -0.8,
        "eps1": None,
        "eps2": 1e-3,
        "clip_threshold": 1.0,
        "weight_decay": 0.0,
    },
    negated=("decay_rate",),
    none_is_machine_epsilon=("eps1",),
    fixed={
        "clamp_eps": True,
        "nan_rms_is_small": True,
        "relative_step": True,
        "parameter_scale": True,
        "factored": True,
        "largest_axes": False,
        "min_dim_to_factor": 1,
    },
    slots={"row": "row_var", "column": "col_var", "exp_avg_sq": "variance"},
    decay="decoupled",
    formula=(
        "p -= min(lr, 1/sqrt(t)) * max(eps2, RMS(p)) * U / max(1, RMS(U)/d); "
        "U = g / max(sqrt(v), eps1); v = r*c / max(mean r, eps1)"
    ),
    quirks=(
        "torch-adafactor-eps1-clamps: eps1 bounds the mean of r and the root of v from below "
        "instead of being added to g^2",
        "torch-adafactor-eps1-none: eps1=None is the machine epsilon of the parameter's dtype; "
        "torch keeps that of the first dtype in a group for the whole group",
        "torch-adafactor-nan-rms: an RMS that is NaN is smaller than any bound, so that a vector "
        "with one infinite gradient steps all its other elements",
    ),
)

DIALECT = Dialect(
    name="torch",
    spellings={
        spelling.rule: spelling
        for spelling in (SGD, ADAGRAD, RMSPROP, ADADELTA, ADAM, ADAMW, ADAFACTOR)
    },
    clip_formulas={
        "value": "min(max(g, -value), value)",
        "norm": "g * min(1, norm/(|g| + 1e-6)), one tensor at a time",
        "global_norm": "g * min(1, norm/(|all g| + 1e-6))",
    },
    clip_eps=1e-6,
    averaging=Averaging(
        momentum=0.999,
        start="first_update",
        formula="swa_utils.AveragedModel, a copy of the model: a = momentum*a + (1-momentum)*p",
        without_gradient=True,
    ),
    steps_per="parameter",
    other_arguments=(
        "params",
        "maximize",
        "foreach",
        "capturable",
        "differentiable",
        "fused",
        "decoupled_weight_decay",
    ),
    extension_points=("_init_group", "_accelerator_graph_capture_health_check"),
    shard_marks={
        "_is_flat_param": "FSDP1",
        "_fsdp_flattened": "FSDP1 with use_orig_params=True",
        "_is_sharded": "fairscale's FullyShardedDataParallel",
        "ds_id": "DeepSpeed's ZeRO-3",
        "tensor_model_parallel": "Megatron's tensor parallelism",
        "model_parallel": "model parallelism",
    },
    part_holders=(
        "ZeroRedundancyOptimizer",
        "DeepSpeedZeroOptimizer",
        "DeepSpeedZeroOptimizer_Stage3",
        "BF16_Optimizer",
        "DistributedOptimizer",
        "_LocalOptimizer",
        "_ScriptLocalOptimizer",
    ),
    part_groups={
        "ZeroRedundancyOptimizer": PartGroup(
            group="join_process_group", device="join_device", unless="_overlap_with_ddp"
        ),
    },
    quirks=(
        "torch-step-in-float32: the step count is a float32, which stops growing at 2^24",
        "torch-tensor-hyperparameters: coefficients of a tensor as lr, betas or weight_decay are "
        "computed in its dtype; isostep's from its value, in float64",
    ),
)
