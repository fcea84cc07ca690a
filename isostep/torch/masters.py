"""float32 masters of low-precision parameters, and what happens if someone else writes to these."""

from __future__ import annotations

import torch


class Masters:
    """The parameters that have masters.

    A step writes both. Whoever writes to a parameter between two steps (loading a checkpoint into
    the model, pruning, an averaging context) means the model; the masters follow where the two no
    longer agree, and keep their digits everywhere else.
    """

    def __init__(self) -> None:
        self._params: list[torch.Tensor] = []
        self._masters: list[torch.Tensor] = []
        self._versions: list[int] = []

    def add(self, param: torch.Tensor, master: torch.Tensor) -> None:
        """Watch a parameter."""
        self._params.append(param)
        self._masters.append(master)
        self._versions.append(-1)  # also what came from a checkpoint may disagree

    def refresh(self) -> None:
        """Bring masters up to date with what was written to their parameters."""
        for k, (param, master) in enumerate(zip(self._params, self._masters, strict=True)):
            if param._version != self._versions[k]:
                with torch.no_grad():
                    model = param.detach()
                    same = master.to(model.dtype) == model
                    master.copy_(torch.where(same, master, model.to(master.dtype)))
                self._versions[k] = param._version

    def stepped(self) -> None:
        """Take the versions of now as known."""
        self._versions = [param._version for param in self._params]
