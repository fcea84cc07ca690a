"""isostep for tf_keras: the optimizers of TensorFlow's Keras 2 API, with one fused step.

    from isostep.tf_keras import Adam  # instead of: from tf_keras.optimizers import Adam

Signatures, defaults, methods, variables and saving are tf_keras' own; so are distribution
strategies. `mesh=` keeps variables and state on a mesh of `tensorflow.experimental.dtensor`.
"""

from __future__ import annotations

from isostep.tf_keras.drop_in import SGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, RMSprop

__all__ = ["SGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "RMSprop"]
