"""The parts of `make peers` that need no framework: substitution, counting, running, comparing."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from peers import compare, justified, page, process, results, runner
from peers.counting import Counts
from peers.justified import Justified
from peers.places import Places
from peers.places import replace as substitute
from peers.places.tf_keras import installed
from peers.runner import How, Outcome
from peers.suites import SUITES, Suite

_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef)
PASSED, FAILED = Outcome("passed"), Outcome("failed", message="1 is not 2")
TOY = """
class Adam:
    def step(self):
        pass

TABLE = {"adam": Adam}
"""
TESTS = """
import os, subprocess, sys, time
import pytest
from toy import TABLE, Adam

def test_passes():
    Adam()

def test_steps():
    optimizer = TABLE["adam"]()
    optimizer.step()
    optimizer.step()

def test_differs():
    assert Adam.__module__ == "toy"

def test_starts_a_process():
    code = "import toy; made = toy.Adam(); made.step(); print(toy.Adam.__module__, end='')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == Adam.__module__

def test_skips():
    pytest.skip("not here")

def test_crashes():
    os._exit(7)

def test_hangs():
    time.sleep(60)

def test_after():
    pass
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A suite of a framework that is one file."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.py").write_text(TOY)
    (tmp_path / "toy" / "test_toy.py").write_text(TESTS)
    (tmp_path / "toy" / "test_broken.py").write_text("import nothing_of_this_name")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    return Suite(
        name="toy",
        title="Toy",
        peer="tests.toy_peer",
        files=("test_*.py",),
        package="pytest",
        checkout="toy",
        helpers=".",
        limit=3,
    )


def test_a_suite_outlives_tests_that_end_or_stop_its_process(toy: Suite, tmp_path: Path) -> None:
    theirs = runner.run(toy, "theirs", tmp_path, how=How("passes or steps or differs"))
    ours = runner.run(toy, "ours", tmp_path, how=How(jobs=2))
    ends = {test.rpartition(":")[2]: o.outcome for test, o in ours.outcomes.items()}
    assert ends == {
        "test_broken.py": "failed",
        "test_passes": "passed",
        "test_steps": "passed",
        "test_differs": "failed",
        "test_starts_a_process": "passed",
        "test_skips": "skipped",
        "test_crashes": process.CRASHED,
        "test_hangs": process.TOO_LONG,
        "test_after": "passed",
    }
    assert ours.outcomes["test_toy.py::test_steps"].made == 1
    assert ours.outcomes["test_toy.py::test_steps"].steps == 2
    assert ours.outcomes["test_toy.py::test_starts_a_process"].steps == 1
    assert compare.touched(ours.outcomes) == 3
    assert compare.touched(theirs.outcomes) == 0
    found = compare.differences(theirs.outcomes, ours.outcomes)
    assert [d.test for d in found if d.theirs == "passed"] == ["test_toy.py::test_differs"]
    assert "toy_peer" in found[0].message
    assert not ours.errors


def test_tests_that_are_not_there_are_said(toy: Suite, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="PEERS"):
        runner.run(toy, "ours", None)
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        runner.run(replace(toy, checkout="elsewhere"), "ours", tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        runner.run(replace(toy, files=("absent.py",)), "ours", tmp_path)


class _Theirs:
    pass


class _Ours:
    def __init__(self, rate: float = 0.1) -> None:
        self.rate = rate

    def __new__(cls, *args: object, **kwargs: object) -> _Ours:
        return super().__new__(cls)


def test_every_name_and_container_is_replaced_and_containers_stay_themselves() -> None:
    values, row, group = {"adam": _Theirs, _Theirs: 1}, [_Theirs, 2], {_Theirs, 3}
    names = {"A": _Theirs, "d": values, "l": row, "s": group, "t": (_Theirs, 4), "other": [5]}
    substitute(names, {id(_Theirs): _Ours})
    assert names["A"] is _Ours
    assert names["t"] == (_Ours, 4)
    assert names["d"] is values
    assert values == {"adam": _Ours, _Ours: 1}
    assert row == [_Ours, 2]
    assert group == {_Ours, 3}
    assert names["other"] == [5]


@pytest.mark.parametrize("method", ["__init__", "__new__"])
def test_counting_changes_no_signature_and_counts_nothing_while_tracing(
    method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_Ours, method, vars(_Ours)[method])  # put back afterwards
    before, traced = inspect.signature(getattr(_Ours, method)), False
    counts = Counts(lambda: traced, tmp_path / "counts")
    counts.watch(_places([f"{__name__}:_Ours.{method}"]))
    assert inspect.signature(getattr(_Ours, method)) == before
    assert _Ours(rate=0.5).rate == 0.5
    assert counts.made == 1
    traced = True
    _Ours()
    assert counts.made == 1
    counts.start()
    assert counts.made == 0


def test_a_method_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="_Ours defines no gone"):
        Counts(lambda: False, tmp_path / "counts").watch(_places([f"{__name__}:_Ours.gone"]))


@pytest.mark.parametrize("name", ["optax", "keras", "torch", "tf_keras", "paddle"])
def test_the_methods_that_are_counted_are_there(name: str) -> None:
    peer = importlib.import_module(f"peers.places.{name}")  # which does not import the framework
    for method in [*peer.CONSTRUCTS, *peer.STEPS]:
        module, _, rest = method.partition(":")
        source = Path(__file__).parent.parent / f"{module.replace('.', '/')}.py"
        classes = [n for n in ast.parse(source.read_text()).body if isinstance(n, ast.ClassDef)]
        defined = {f"{c.name}.{m.name}" for c in classes for m in c.body if isinstance(m, _DEFINES)}
        assert rest in defined


def _places(constructs: list[str]) -> Places:
    return Places(pairs=[], modules=[], constructs=constructs, steps=[])


def test_only_what_ends_otherwise_is_a_difference() -> None:
    theirs = {"a": PASSED, "b": FAILED, "c": PASSED, "d": FAILED, "e": PASSED}
    ours = {"a": PASSED, "b": FAILED, "c": FAILED, "d": PASSED, "f": PASSED}
    found = compare.differences(theirs, ours)
    assert [(d.test, d.theirs, d.ours) for d in found] == [
        ("c", "passed", "failed"),
        ("d", "failed", "passed"),
        ("e", "passed", compare.NOT_RUN),
        ("f", compare.NOT_RUN, "passed"),
    ]
    assert found[0].message == FAILED.message


def test_crashes_and_timeouts_count_as_failed() -> None:
    outcomes = {"a": Outcome(process.CRASHED), "b": Outcome(process.TOO_LONG), "c": PASSED}
    assert compare.counts(outcomes) == {"passed": 1, "failed": 2, "skipped": 0}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('suite = "optax"\ntest = "t"', "needs reason, suite, test"),
        ('suite = "optax"\ntest = "t"\nreason = ""', "needs reason, suite, test"),
        ('suite = "optax"\ntest = "t"\nreason = "r"\nextra = 1', "needs reason, suite, test"),
        ('suite = "octax"\ntest = "t"\nreason = "r"', "'octax' is unknown"),
    ],
)
def test_a_wrong_entry_of_the_list_is_refused(entry: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        justified.read(f"[[difference]]\n{entry}", SUITES)


def test_a_test_is_listed_once_for_a_suite() -> None:
    entry = '[[difference]]\nsuite = "optax"\ntest = "t"\nreason = "r"\n'
    with pytest.raises(ValueError, match="twice"):
        justified.read(entry + entry, SUITES)


def _result(change: Callable[[results.Result], None] = lambda _: None) -> results.Result:
    differences = compare.differences({"t": PASSED, "u": PASSED}, {"t": FAILED, "u": PASSED})
    counted = {"passed": 1, "failed": 1, "skipped": 0}
    versions = {"optax": "0", "Python": "3", "isostep": "0"}
    found = results.Result("optax", "2026-01-01", versions, counted, counted, 1, 2.0, differences)
    change(found)
    return found


def test_a_difference_holds_only_with_a_reason() -> None:
    listed = [Justified("optax", "t", "Because."), Justified("keras-jax", "u", "Elsewhere.")]
    assert len(results.judged(_result(), []).faults) == 1
    assert not results.judged(_result(), listed).faults


def test_a_listed_test_that_does_not_differ_is_a_fault() -> None:
    listed = [Justified("optax", "t", "Because."), Justified("optax", "u", "No longer.")]
    assert results.judged(_result(), listed).faults == [
        "u: listed as justified, but does not differ"
    ]


def test_a_suite_without_tests_or_without_isostep_does_not_hold() -> None:
    def without_tests(result: results.Result) -> None:
        result.theirs = dict.fromkeys(compare.COUNTED, 0)

    def without_isostep(result: results.Result) -> None:
        result.touched = 0

    listed = [Justified("optax", "t", "Because.")]
    assert results.judged(_result(without_tests), listed).faults == ["no test ran"]
    assert "no test used" in results.judged(_result(without_isostep), listed).faults[0]


def test_results_are_read_as_written(tmp_path: Path) -> None:
    found = results.judged(_result(), [Justified("optax", "t", "Because.")])
    results.write(found, tmp_path)
    kept = [replace(d, message="") for d in found.differences]
    assert results.read("optax", tmp_path) == replace(found, differences=kept)
    assert results.read("timm", tmp_path) is None


def test_the_page_has_every_difference_with_its_reason_and_names_what_did_not_run() -> None:
    listed = [Justified("optax", "t", "Because of this.")]
    text = page.page({"optax": results.judged(_result(), listed)})
    assert "| optax | 0 | 2026-01-01 | 1 | 1 | 0 | 1 | 1 | 0 | 1 | 1, justified |" in text
    assert "- `t`: passed, with isostep failed. Because of this." in text
    assert f"| {SUITES['timm'].title} | not run | not run |" in text
    assert "Not justified" in page.page({"optax": _result()})


def test_tf_keras_tests_import_the_installed_package() -> None:
    source = "import tf_keras as keras\nfrom tf_keras.optimizers import sgd\nx = 'from tf_keras'\n"
    assert installed(source) == (
        "import tf_keras.src as keras\nfrom tf_keras.src.optimizers import sgd\n"
        "x = 'from tf_keras'\n"
    )
    assert installed(installed(source)) == installed(source)


def test_the_page_is_that_of_the_results_and_every_difference_has_its_reason() -> None:
    listed = justified.load(SUITES)
    last = {name: results.read(name) for name in SUITES}
    known = {name: results.judged(r, listed) for name, r in last.items() if r is not None}
    assert {name: result.faults for name, result in known.items() if result.faults} == {}
    assert len(listed) <= 12
    assert page.PAGE.read_text() == page.page(known)


def test_no_result_quotes_a_frameworks_code_or_a_path_of_the_machine() -> None:
    found = [results.read(name) for name in SUITES]
    kept = [d.message for result in found if result is not None for d in result.differences]
    assert kept
    assert set(kept) == {""}
