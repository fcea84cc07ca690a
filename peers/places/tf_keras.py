"""tf_keras, whose tests are written for its source tree."""

from __future__ import annotations

import re

from peers.places import Places, pairs

CONSTRUCTS = ["isostep.keras_api:FusedOptimizer.__init__"]
STEPS = ["isostep.tf_keras.optimizer:FusedApply._internal_apply_gradients"]


def places() -> Places:
    """Where tf_keras' optimizers are found."""
    import tf_keras

    import isostep.tf_keras

    return Places(
        pairs=pairs(tf_keras.optimizers, isostep.tf_keras),
        modules=["tf_keras"],
        constructs=CONSTRUCTS,
        steps=STEPS,
    )


def installed(text: str) -> str:
    """A test's source with the imports that the installed package has, where `tf_keras.x` of the
    source tree is `tf_keras.src.x`."""
    return re.sub(
        r"^(\s*)(from|import) tf_keras\b(?!\.src\b)", r"\1\2 tf_keras.src", text, flags=re.M
    )
