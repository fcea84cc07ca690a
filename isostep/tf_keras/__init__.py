"""isostep for tf_keras: the optimizers of TensorFlow's Keras 2 API, with one fused step.

    from isostep.tf_keras import Adam  # instead of: from tf_keras.optimizers import Adam

Signatures, defaults, methods, variables and saving are tf_keras' own; so are distribution
strategies. `mesh=` keeps variables and state on a mesh of `tensorflow.experimental.dtensor`.

A sparse gradient counts as the dense one that it stands for, also where it is clipped: a row that
stands in it twice is summed before, which tf_keras does after.
"""

from __future__ import annotations

from isostep.tf_keras.drop_in import SGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, RMSprop

__all__ = ["SGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "RMSprop"]
