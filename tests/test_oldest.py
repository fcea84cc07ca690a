"""What `pyproject.toml` declares can be run: see `oldest.py`."""

from __future__ import annotations

import tomllib

import pytest
from packaging.version import Version

from .oldest import LANES, ROOT, oldest


@pytest.mark.parametrize("lane", LANES)
def test_every_requirement_declares_an_oldest_version_and_one_of_a_package(lane: str) -> None:
    pins = dict(pin.split("==") for pin in oldest(lane))
    assert {"numpy", "numba"} < pins.keys()


def test_the_oldest_versions_are_no_newer_than_those_of_the_tests() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line)
    tested = {name.replace("-", "_"): version for name, version in tested.items()}
    for lane in LANES:
        for name, version in (pin.split("==") for pin in oldest(lane)):
            assert Version(version) <= Version(tested[name]), name


def test_every_extra_with_a_framework_has_a_lane() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    ours = {extra for lane in LANES.values() for extra in lane}
    assert ours == extras.keys() - {"cli", "dev", "frameworks"}
