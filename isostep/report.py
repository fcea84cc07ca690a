"""What a step measured on the way, inside its passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from isostep.table import Table

SUMS = ("grad_sq", "update_sq", "param_sq", "nonfinite")
"""What a step sums up over each tensor, by the names that a recipe gives them."""


@dataclass(frozen=True)
class GroupReport:
    """Euclidean norms over one group, and its non-finite gradient elements.

    Elements whose squares are no normal numbers may count as zero: in float32 those below 1e-19.

    Args:
        name: the group's pattern, or `"(default)"`.
        grad_norm: of the gradient, after the loss scale is divided out and before clipping.
        update_norm: of the change of the parameters, decay included.
        param_norm: of the parameters before the step.
        nonfinite: number of infinite or NaN gradient elements.
    """

    name: str
    grad_norm: float
    update_norm: float
    param_norm: float
    nonfinite: int

    @classmethod
    def of(cls, name: str, sums: Sequence[float]) -> GroupReport:
        """From the `SUMS` of a group."""
        grad, update, param = (math.sqrt(x) for x in sums[:3])
        return cls(name, grad, update, param, int(sums[3]))

    @property
    def update_ratio(self) -> float:
        """Norm of the update over norm of the parameters; 0 where these are zero."""
        return self.update_norm / self.param_norm if self.param_norm else 0.0


@dataclass(frozen=True)
class Report:
    """What one step measured.

    Args:
        step: count of the optimizer's steps, this one included unless it was skipped.
        skipped: whether a non-finite gradient stopped it; then nothing was written, and no norm was
            measured: all are 0.
        groups: one entry for each group that has parameters.
    """

    step: int
    skipped: bool
    groups: list[GroupReport] = field(default_factory=list[GroupReport])

    @classmethod
    def of(
        cls, names: Sequence[str], sums: Sequence[Sequence[float]], step: int, nonfinite: str
    ) -> Report:
        """From the `SUMS` of each group, as a compiled step leaves them.

        Args:
            names: of the groups.
            sums: of each group.
            step: the count of steps.
            nonfinite: the policy; under `"skip"` a count stops the step.
        """
        skipped = nonfinite == "skip" and any(s[-1] for s in sums)
        if skipped:  # nothing was measured but the counts
            sums = [[0.0] * (len(SUMS) - 1) + [s[-1]] for s in sums]
        groups = [GroupReport.of(n, s) for n, s in zip(names, sums, strict=True)]
        return cls(step, skipped, groups)

    @property
    def nonfinite(self) -> int:
        """Number of infinite or NaN gradient elements in all groups."""
        return sum(g.nonfinite for g in self.groups)

    def table(self) -> Table:
        """The report as a table."""
        return Table(
            f"step {self.step}" + (" (skipped)" if self.skipped else ""),
            ["group", "gradient norm", "update norm", "parameter norm", "ratio", "non-finite"],
            [
                [
                    g.name,
                    f"{g.grad_norm:.4g}",
                    f"{g.update_norm:.4g}",
                    f"{g.param_norm:.4g}",
                    f"{g.update_ratio:.2g}",
                    str(g.nonfinite),
                ]
                for g in self.groups
            ],
        )

    def __str__(self) -> str:
        return str(self.table())
