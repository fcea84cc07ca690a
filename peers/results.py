"""What a run of a suite found, kept in `peers/results/`, one JSON file for each suite.

The page is written from all of them, so that one suite can be run anew.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers import compare
from peers.compare import Difference
from peers.justified import Justified
from peers.runner import Run
from peers.suites import Suite

FOLDER = Path(__file__).with_name("results")


@dataclass
class Result:
    """Both sides of one suite, compared.

    Args:
        suite: its name.
        day: when it ran.
        versions: of the framework, Python and isostep.
        theirs, ours: numbers of tests passed, failed and skipped.
        touched: how many tests used isostep's optimizers.
        seconds: that both sides took.
        differences: every test that ends otherwise.
        outdated: ids that the list of justified differences has and that do not differ.
        errors: what went wrong outside of tests.
        absent: patterns of the suite that matched no file.
        source: which state of the framework's repository the tests are, if they are a checkout.
    """

    suite: str
    day: str
    versions: dict[str, str]
    theirs: dict[str, int]
    ours: dict[str, int]
    touched: int
    seconds: float
    differences: list[Difference] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    source: str = ""

    @property
    def unjustified(self) -> list[Difference]:
        """Differences without a reason."""
        return [d for d in self.differences if not d.reason]

    @property
    def faults(self) -> list[str]:
        """Why the suite does not hold; empty if it does."""
        found = [f"{d.test}: {d.theirs}, with isostep {d.ours}" for d in self.unjustified]
        found += [f"{test}: listed as justified, but does not differ" for test in self.outdated]
        found += self.errors
        if not sum(self.theirs.values()) or not sum(self.ours.values()):
            found.append("no test ran")
        elif not self.touched:
            found.append("no test used isostep's optimizers, so that it shows nothing")
        return found

    def to_json(self) -> str:
        """For the file, without the failures' texts: they quote the framework's code and paths of
        the machine."""
        kept = replace(self, differences=[replace(d, message="") for d in self.differences])
        return json.dumps(asdict(kept), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Result:
        """What `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        made = [Difference(**d) for d in fields.pop("differences")]
        return cls(**fields, differences=made)


def of(suite: Suite, checkouts: Path | None, theirs: Run, ours: Run, seconds: float) -> Result:
    """The result of both runs, before anything is justified."""
    both = theirs.outcomes and ours.outcomes  # else the errors say why
    return Result(
        suite=suite.name,
        day=time.strftime("%Y-%m-%d", time.gmtime()),
        versions={
            suite.package: suite.version,
            "Python": platform.python_version(),
            "isostep": version("isostep"),
        },
        theirs=compare.counts(theirs.outcomes),
        ours=compare.counts(ours.outcomes),
        touched=compare.touched(ours.outcomes),
        seconds=round(seconds),
        differences=compare.differences(theirs.outcomes, ours.outcomes) if both else [],
        errors=list(dict.fromkeys([*theirs.errors, *ours.errors])),
        absent=suite.absent(checkouts),
        source=suite.source(checkouts),
    )


def judged(result: Result, justified: Sequence[Justified]) -> Result:
    """The result with the reasons that the list gives now, so that a change of the list needs no
    new run."""
    reasons = {j.test: j.reason for j in justified if j.suite == result.suite}
    found = [replace(d, reason=reasons.get(d.test, "")) for d in result.differences]
    outdated = [test for test in reasons if test not in {d.test for d in found}]
    return replace(result, differences=found, outdated=outdated)


def read(suite: str, folder: Path = FOLDER) -> Result | None:
    """The last result of a suite."""
    path = folder / f"{suite}.json"
    return Result.from_json(path.read_text()) if path.exists() else None


def write(result: Result, folder: Path = FOLDER) -> None:
    """Keep a result; a file is replaced whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.suite}.json"
    part = path.with_suffix(".part")
    part.write_text(result.to_json())
    part.replace(path)
