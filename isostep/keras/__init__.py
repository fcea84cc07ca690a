"""isostep for Keras 3: the classes of keras.optimizers, with one fused step.

    from isostep.keras import AdamW  # instead of: from keras.optimizers import AdamW

Signatures, defaults, variables, configuration and saving are Keras' own. On the torch backend a
step runs isostep's kernels on the variables themselves; on JAX and TensorFlow it is array code that
is compiled into the training step.

A class that overrides a part of Keras' step (`update_step`, `assign`, `_clip_gradients`, ...) takes
Keras' own step, with Keras' own variables.

States move both ways between these classes and Keras' own: `.weights.h5`, checkpoints of
TensorFlow, `set_weights`. A model that was saved with Keras' class is loaded with isostep's by
`keras.models.load_model(path, custom_objects={"Adam": isostep.keras.Adam})`.

A sparse gradient, which TensorFlow gives for embeddings, counts on every backend as the dense one
that it stands for. (On TensorFlow Keras clips and squares rows that stand in it twice one by one,
and its Adam steps the moments of its rows alone.)
"""

from __future__ import annotations

from isostep.keras.drop_in import SGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, RMSprop

__all__ = ["SGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "RMSprop"]
