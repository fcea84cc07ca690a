"""What was measured, as it is written to JSON, and the questions that tables ask of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks import machine, models, program
from benchmarks.cases import CASES
from benchmarks.own import NAME
from benchmarks.peers import MODULES
from benchmarks.worker import COLD, DENORMALS, LIMIT, LOAD, OVERHEAD, PARTS, TRAINING

Record = dict[str, Any]


def cell(record: Record) -> tuple[Any, ...]:
    """What tells one record from the others."""
    return record["kind"], tuple(record["peers"]), record["model"], record["case"]


@dataclass(frozen=True)
class Speed:
    """How isostep compares with the best that one peer has.

    Args:
        kind: the peer's fastest contestant.
        own_ms, peer_ms: medians of one step, from one process.
        ratio: how many times faster isostep is, by the medians.
        paired: the same as the median of the ratios within rounds.
    """

    kind: str
    own_ms: float
    peer_ms: float
    ratio: float
    paired: float


@dataclass
class Results:
    """Everything that one run found; may be incomplete.

    Args:
        models, cases, peers: what was asked for, in order.
        threads: that every contestant could use.
        huge_pages: whether glibc asked for huge pages on behalf of all.
        parts: kinds of workers that were asked for.
        records: one for each cell.
        errors: of workers that died.
    """

    models: list[str]
    cases: list[str]
    peers: list[str]
    threads: int
    huge_pages: bool = False
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    versions: dict[str, str] = field(default_factory=machine.versions)
    records: list[Record] = field(default_factory=list)
    startup: Record = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    load: list[float | None] = field(default_factory=lambda: [machine.load()])
    seconds: float = 0.0

    def add(self, record: Record) -> None:
        """Keep what a worker printed."""
        if "versions" in record:
            self.versions |= record["versions"]
        elif "model" not in record:
            self.errors.append(record["error"])
        else:
            self.records.append(record)

    def keep(self, earlier: Results) -> None:
        """Take in what an earlier run measured and this one did not.

        Raises:
            ValueError: it was measured otherwise, so that the two cannot stand side by side.
        """
        for name in ("threads", "huge_pages"):
            if getattr(earlier, name) != getattr(self, name):
                raise ValueError(f"it was measured with {name}={getattr(earlier, name)}")
        for name, version in earlier.versions.items():
            if self.versions.get(name, version) != version and name != "isostep":
                raise ValueError(f"it was measured with {name} {version}")
        measured = {cell(record) for record in self.records}
        kept = [record for record in earlier.records if cell(record) not in measured]
        self.records = kept + self.records
        self.versions = earlier.versions | self.versions
        self.startup = self.startup or earlier.startup
        self.models, self.cases, self.peers, self.parts = (
            [name for name in known if name in {*ours, *theirs}]
            for known, ours, theirs in (
                (models.NAMES, self.models, earlier.models),
                (CASES, self.cases, earlier.cases),
                (MODULES, self.peers, earlier.peers),
                (PARTS, self.parts, earlier.parts),
            )
        )

    @property
    def complete(self) -> bool:
        """Whether every cell that was asked for is there."""
        todo = program.tasks(self.models, self.cases, self.peers, self.threads, parts=self.parts)
        found = {cell(record) for record in self.records}
        return all((t.kind, tuple(t.peers), *c) in found for t in todo for c in t.cells)

    def find(self, kind: str, model: str, case: str) -> list[Record]:
        """The records of one cell that were measured."""
        return [
            r
            for r in self.records
            if (r["kind"], r["model"], r["case"]) == (kind, model, case)
            and not r.keys() & {"error", "absent"}
        ]

    def speed(self, model: str, case: str, peer: str, own: str = NAME) -> Speed | None:
        """isostep, or the front-end of this name, against the fastest contestant of `peer`."""
        for record in self.find("peers", model, case):
            times = record["times"]
            found = [n for n, t in times.items() if t["family"] == peer]
            if found and own in record["ratios"]:
                best = min(found, key=lambda name: times[name]["median_ms"])
                ratio = record["ratios"][own][best]
                own_ms, peer_ms = times[own]["median_ms"], times[best]["median_ms"]
                return Speed(best, own_ms, peer_ms, ratio["of_medians"], ratio["paired"])
        return None

    def best(self, model: str, case: str) -> dict[str, Speed]:
        """isostep against the fastest of each family; of Keras' backends, the one whose step takes
        least."""
        found: dict[str, Speed] = {}
        for peer in self.peers:
            family = peer.partition("-")[0]
            speed = self.speed(model, case, peer)
            if speed and (family not in found or speed.peer_ms < found[family].peer_ms):
                found[family] = speed
        return found

    def own_ms(self, model: str, case: str) -> float | None:
        """The median step of isostep, from the first process that measured it."""
        found = self.find("peers", model, case) + self.find(LIMIT, model, case)
        return found[0]["times"][NAME]["median_ms"] if found else None

    def copy_share(self, model: str, case: str) -> tuple[float, float] | None:
        """The step's part of the copy limit, by paired rounds, and its bytes per second."""
        for record in self.find(LIMIT, model, case):
            step = record["times"][NAME]["median_ms"] / 1e3
            return record["ratios"][NAME]["copy"]["paired"], record["step_bytes"] / step
        return None

    def slowdown(self, model: str, case: str) -> dict[str, float]:
        """How much slower steps are with gradients of 1e-20, by contestant."""
        found = self.find(DENORMALS, model, case)
        return found[0]["slowdown"] if found else {}

    def overhead(self, model: str, case: str, own: str = NAME) -> Record | None:
        """The step's time in and outside of kernels."""
        found = [r for r in self.find(OVERHEAD, model, case) if r["name"] == own]
        return found[0] if found else None

    def training(self, case: str) -> dict[str, dict[str, float]]:
        """The parts of an iteration of a training loop, by who steps."""
        found = [r for r in self.records if (r["kind"], r["case"]) == (TRAINING, case)]
        return found[0].get("training", {}) if found else {}

    def cold(self) -> list[tuple[str, str, dict[str, float]]]:
        """(model, case, what was found) of each first step that was measured."""
        return [(r["model"], r["case"], r["cold"]) for r in self._measured(COLD)]

    def loads(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(load, case, what was found) of each load."""
        return [(r["model"], r["case"], r["load"]) for r in self._measured(LOAD)]

    def _measured(self, kind: str) -> list[Record]:
        return [r for r in self.records if r["kind"] == kind and "error" not in r]

    def failures(self) -> list[str]:
        """What could not be measured, and why."""
        cells = [
            f"{r['kind']} {r['model']} {r['case']}: {r['error']}"
            for r in self.records
            if "error" in r
        ]
        return [*self.errors, *cells]

    @classmethod
    def read(cls, document: Record) -> Results:
        """What `to_dict` made a document of."""
        names = ("models", "cases", "peers", "threads", "huge_pages", "versions", "startup")
        given = {name: document[name] for name in names}
        if "parts" in document:
            given["parts"] = document["parts"]
        return cls(records=document["cells"], load=document["load_before_and_after"], **given)

    def to_dict(self) -> Record:
        """For JSON."""
        return {
            "machine": machine.describe(),
            "load_before_and_after": self.load,
            "versions": dict(sorted(self.versions.items())),
            "threads": self.threads,
            "huge_pages": self.huge_pages,
            "complete": self.complete,
            "seconds": round(self.seconds, 1),
            "models": self.models,
            "cases": self.cases,
            "peers": self.peers,
            "parts": self.parts,
            "startup": self.startup,
            "cells": self.records,
            "failures": self.failures(),
        }
