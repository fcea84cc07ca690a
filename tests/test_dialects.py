"""The dialects say what the frameworks say, and are read without loss."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from isostep import dialects, rules
from isostep.dialects import REQUIRED, Spelling
from isostep.dialects.base import CLIP_KINDS, negative
from isostep.errors import HyperparameterError, UnknownNameError

SPELLINGS = [
    pytest.param(name, spelling, id=f"{name}-{spelling.class_name}")
    for name in dialects.names()
    for spelling in dialects.get(name).spellings.values()
]

# Where the classes of each framework live; each is read in a process of its own.
WHERE = {
    "torch": "torch.optim",
    "keras": "keras.optimizers",
    "tf_keras": "tf_keras.optimizers",
    "paddle": "paddle.optimizer",
    "optax": "optax",
}

SIGNATURES = """
import importlib, inspect, json, sys
module = importlib.import_module(sys.argv[1])
found = {}
for name in sys.argv[2:]:
    parameters = inspect.signature(getattr(module, name)).parameters.values()
    found[name] = {p.name: "required" if p.default is p.empty else p.default for p in parameters}
print(json.dumps(found, default=repr))
"""

# optax's default, None, climbs the loss, so the dialect asks for a learning rate.
REFUSED_DEFAULTS = {("optax", "adadelta", "learning_rate")}


@pytest.fixture(scope="module", params=list(WHERE))
def framework(request: pytest.FixtureRequest) -> tuple[str, dict[str, dict[str, object]]]:
    name = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    classes = [spelling.class_name for spelling in dialects.get(name).spellings.values()]
    done = subprocess.run(
        [sys.executable, "-c", SIGNATURES, WHERE[name], *classes],
        capture_output=True,
        text=True,
        check=True,
    )
    return name, json.loads(done.stdout.splitlines()[-1])


def test_defaults_are_those_of_the_framework(framework):
    name, signatures = framework
    for spelling in dialects.get(name).spellings.values():
        signature = signatures[spelling.class_name]
        for argument, hyperparameters in spelling.arguments.items():
            if (name, spelling.class_name, argument) in REFUSED_DEFAULTS:
                continue
            values = [
                "required" if spelling.defaults[each] is REQUIRED else spelling.defaults[each]
                for each in hyperparameters
            ]
            assert signature[argument] == (values if len(values) > 1 else values[0]), argument
        for argument, value in spelling.unsupported.items():
            assert signature[argument] == value


def test_every_argument_of_the_framework_is_accounted_for(framework):
    name, signatures = framework
    dialect = dialects.get(name)
    for spelling in dialect.spellings.values():
        known = {*spelling.arguments, *spelling.unsupported, *dialect.other_arguments}
        assert set(signatures[spelling.class_name]) <= known


def test_averaging_defaults_are_those_of_the_framework(framework):
    name, signatures = framework
    dialect = dialects.get(name)
    for spelling in dialect.spellings.values():
        signature = signatures[spelling.class_name]
        assert signature.get("ema_overwrite_frequency") == spelling.average_every
        assert signature.get("ema_momentum", dialect.averaging.momentum) == (
            dialect.averaging.momentum
        )


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_a_spelling_names_only_what_its_rule_has(name: str, spelling: Spelling):
    rule = rules.get(spelling.rule)
    for group in (
        spelling.names,
        spelling.defaults,
        spelling.fixed,
        spelling.negated,
        spelling.none_means,
        spelling.none_is_machine_epsilon,
        spelling.without_effect,
        spelling.in_float32,
    ):
        assert set(group) <= set(rule.defaults)
    assert set(spelling.names) == set(spelling.defaults)
    assert set(spelling.slots) <= {slot.name for slot in rule.slots}
    assert not set(spelling.fixed) & set(spelling.names)
    for hyperparameter, value in spelling.fixed.items():
        assert rule.hyperparameter(hyperparameter).check(value) == value


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_an_argument_is_never_the_name_of_another_hyperparameter(name: str, spelling: Spelling):
    for argument, hyperparameters in spelling.arguments.items():
        assert argument in hyperparameters or argument not in rules.get(spelling.rule).defaults


@pytest.mark.parametrize("name", dialects.names())
def test_a_dialect_has_every_rule_or_says_who_has(name: str):
    dialect = dialects.get(name)
    assert {*dialect.spellings, *dialect.absent} >= set(rules.names())
    for rule, reason in dialect.absent.items():
        with pytest.raises(UnknownNameError) as raised:
            dialect.spelling(rule)
        assert str(raised.value) == reason
        for other in dialects.names():
            assert (other in reason) == (rule in dialects.get(other).spellings)


@pytest.mark.parametrize("name", dialects.names())
def test_every_slot_that_a_default_step_keeps_has_a_name(name: str):
    for spelling in dialects.get(name).spellings.values():
        rule = rules.get(spelling.rule)
        own = {slot.name for slot in rule.slots} - {"exp_avg"}
        if rule.name != "Adafactor":  # whose first moment only optax has
            own |= {slot.name for slot in rule.slots}
        assert own <= set(spelling.slots)


@pytest.mark.parametrize("name", dialects.names())
def test_quirks_and_clips_are_named(name: str):
    dialect = dialects.get(name)
    quirks = [q for s in dialect.spellings.values() for q in s.quirks] + [*dialect.quirks]
    for quirk in quirks:
        head, colon, text = quirk.partition(": ")
        assert head.startswith(f"{name}-")
        assert " " not in head
        assert colon
        assert text
    assert set(dialect.clip_formulas) == set(CLIP_KINDS)
    assert set(dialect.inf_norm_is_nan) <= set(CLIP_KINDS)


def changed(rule: rules.Rule, name: str, value: object) -> object:
    """An allowed value that is not `value`."""
    declared = rule.hyperparameter(name)
    if isinstance(value, bool):
        return not value
    number = 0.0 if value is None else float(value)  # type: ignore[arg-type]
    return (number + 0.3) / 2 if declared.high is not None else number + 1.5


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_both_vocabularies_resolve_to_the_same(name: str, spelling: Spelling):
    rule = rules.get(spelling.rule)
    start = spelling.resolve(rule, {"lr": 0.5})
    wanted = {
        each: changed(rule, each, start[each])
        for each in spelling.names
        if each not in spelling.without_effect
    }
    own = spelling.resolve(rule, wanted)
    assert {each: own[each] for each in wanted} == wanted
    assert {k: v for k, v in own.items() if k not in wanted} == {
        k: v for k, v in start.items() if k not in wanted
    }
    spelled = {
        each: negative(value) if each in spelling.negated else value
        for each, value in wanted.items()
    }
    given = {
        argument: spelled[parts[0]] if len(parts) == 1 else [spelled[part] for part in parts]
        for argument, parts in spelling.arguments.items()
        if parts[0] in spelled
    }
    assert spelling.resolve(rule, given) == own
    assert spelling.resolve(rule, own) == own


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_the_own_defaults_given_back_change_nothing(name: str, spelling: Spelling):
    rule = rules.get(spelling.rule)
    defaults = {**spelling.defaults, "lr": 0.5}
    given = {
        argument: defaults[parts[0]] if len(parts) == 1 else [defaults[part] for part in parts]
        for argument, parts in spelling.arguments.items()
    }
    assert spelling.resolve(rule, given) == spelling.resolve(rule, {"lr": 0.5})


def resolve(dialect: str, rule: str, **given: object) -> dict[str, object]:
    spelling = dialects.get(dialect).spelling(rule)
    return spelling.resolve(rules.get(spelling.rule), given)


def test_pairs_are_split():
    resolved = resolve("torch", "Adam", betas=(0.8, 0.9))
    assert (resolved["beta1"], resolved["beta2"]) == (0.8, 0.9)


def test_none_means_what_the_framework_means():
    assert resolve("torch", "Adafactor")["eps1"] is None
    assert resolve("torch", "Adafactor", eps=(1e-5, 1e-2))["eps1"] == 1e-5
    assert resolve("keras", "Adam", weight_decay=None)["weight_decay"] == 0.0
    assert resolve("optax", "Adafactor")["lr"] == 1.0
    assert resolve("optax", "Adafactor", clipping_threshold=None)["clip_threshold"] is None
    with pytest.raises(HyperparameterError, match="weight_decay=None"):
        resolve("keras", "AdamW", weight_decay=None)


def test_the_other_sign_and_the_other_truth():
    assert resolve("keras", "Adafactor", beta_2_decay=-0.7)["decay_rate"] == 0.7
    assert resolve("keras", "Adafactor", decay_rate=0.7)["decay_rate"] == 0.7
    assert resolve("tf_keras", "Adam")["eps_hat"] is True
    assert resolve("tf_keras", "Adam", adaptive_epsilon=True)["eps_hat"] is False
    schedule = resolve("torch", "Adafactor", beta2_decay=lambda step: -0.5 - step)["decay_rate"]
    assert schedule(1) == 1.5


def test_what_has_no_effect_is_checked_and_dropped():
    assert resolve("keras", "Adafactor", relative_step=False)["relative_step"] is True
    with pytest.raises(HyperparameterError, match="relative_step=3"):
        resolve("keras", "Adafactor", relative_step=3)


def test_the_form_of_a_framework_can_be_overruled_by_its_own_name():
    assert resolve("keras", "Adam")["eps_hat"] is True
    assert resolve("keras", "Adam", eps_hat=False)["eps_hat"] is False


@pytest.mark.parametrize(
    ("dialect", "rule", "given", "message"),
    [
        ("torch", "Adam", {"betas": 0.9}, "betas=0.9 is not allowed: give 2 values, beta1, beta2"),
        ("torch", "Adam", {"betas": (0.9,)}, "give 2 values"),
        ("torch", "Adam", {"betas": (0.9, 1.5)}, r"betas\[1\]=1.5 is out of range"),
        ("torch", "Adam", {"betas": (0.9, 0.99), "beta1": 0.9}, r"betas\[0\] and beta1 are the s"),
        ("keras", "Adam", {"lr": 0.1, "learning_rate": 0.1}, "lr and learning_rate are the same"),
        ("keras", "Adam", {"beta_1": 2}, r"beta_1=2 is out of range: it must lie in \[0, 1\)"),
        ("keras", "Adafactor", {"beta_2_decay": 0.8}, "-beta_2_decay=-0.8 is out of range"),
        ("keras", "Adafactor", {"beta_2_decay": "x"}, "beta_2_decay='x' is not a number"),
        ("paddle", "Adagrad", {}, "Adagrad needs learning_rate: it has no default"),
        ("optax", "adadelta", {}, "adadelta needs learning_rate"),
        ("optax", "Adafactor", {"decay_offset": -5}, "decay_offset=-5 is out of range"),
        (
            "optax",
            "amsgrad",
            {"learning_rate": 0.1, "bias_correction_mu": False},
            "bias_correction_mu=False is not supported: use True",
        ),
    ],
)
def test_a_bad_value_says_what_is_wrong(dialect, rule, given, message):
    with pytest.raises(HyperparameterError, match=message):
        resolve(dialect, rule, **given)


def test_an_unknown_name_is_answered_from_both_vocabularies():
    with pytest.raises(UnknownNameError, match=r"did you mean 'epsilon'\?.*learning_rate.*beta1"):
        resolve("keras", "Adam", epsilonn=0.9)
    with pytest.raises(UnknownNameError, match=r"did you mean 'eps_hat'\?"):
        resolve("keras", "Adam", epshat=True)
    with pytest.raises(UnknownNameError, match=r"there is no dialect 'Keras3'; did you mean 'kera"):
        dialects.get("Keras3")
    with pytest.raises(UnknownNameError, match=r"no rule 'AdmW'; did you mean 'AdamW'\?"):
        dialects.get("torch").spelling("AdmW")


def test_a_second_class_of_a_framework_spells_the_same_rule():
    assert dialects.get("paddle").spelling("Momentum").rule == "SGD"
    assert resolve("paddle", "Momentum")["momentum"] == 0.9
    assert resolve("paddle", "SGD")["momentum"] == 0.0
    assert resolve("optax", "amsgrad", lr=0.1)["amsgrad"] is True
    assert dialects.get("paddle").spelling("RMSProp") is dialects.get("paddle").spelling("RMSprop")


def test_a_rule_of_a_user_is_spelled_as_declared():
    mine = replace(rules.get("SGD"), name="Mine")
    spelling = dialects.get("keras").spelling(mine)
    assert spelling.class_name == "Mine"
    assert spelling.resolve(mine, {"lr": 0.1})["lr"] == 0.1
    assert dialects.difference(mine, "torch", "optax", all=True).rows


def test_a_front_end_can_add_what_its_framework_lacks():
    paddle = dialects.get("paddle")
    adafactor = replace(dialects.get("keras").spelling("Adafactor"), class_name="Adafactor")
    extended = paddle.extended(Adafactor=adafactor)
    assert extended.spelling("Adafactor") is adafactor
    with pytest.raises(UnknownNameError):
        paddle.spelling("Adafactor")


def test_torch_and_keras_differ_where_their_users_notice():
    table = dialects.difference("AdamW", "torch", "keras")
    assert table.columns == ["aspect", "torch", "keras"]
    rows = {aspect: (a, b) for aspect, a, b in table.rows}
    assert rows["default: eps"] == ("1e-08", "1e-07")
    assert rows["argument: beta1"] == ("betas[0]", "beta_1")
    assert rows["slot: exp_avg"] == ("exp_avg, from 0", "momentum, from 0")
    assert {"update", "clip: norm", "average: momentum", "step count per"} <= set(rows)
    assert "class" not in rows
    assert "1e-07" in str(table)
    everything = dialects.difference("AdamW", "torch", "keras", all=True)
    assert ["class", "AdamW", "AdamW"] in everything.rows


@pytest.mark.parametrize("name", dialects.names())
def test_a_dialect_differs_from_itself_in_nothing(name: str):
    for rule in dialects.get(name).spellings:
        assert dialects.difference(rule, name, name).rows == []


def test_a_class_of_one_framework_is_compared_with_the_rule_of_the_other():
    rows = dialects.difference("Momentum", "torch", "paddle").rows
    assert ["class", "SGD", "Momentum"] in rows
    with pytest.raises(UnknownNameError, match="Paddle has no Adafactor"):
        dialects.difference("Adafactor", "torch", "paddle")


def test_dialects_load_no_framework():
    code = "import sys, isostep.dialects; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "keras", "tf_keras", "tensorflow", "paddle", "jax", "optax"}
    assert not loaded & {"numba", "rich"}
