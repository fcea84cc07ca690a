"""The tables that are printed at the end."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import cold, load
from benchmarks.own import NAME
from benchmarks.peers import FRONT_ENDS, LABELS, OTHER_FORMS
from benchmarks.results import Results
from benchmarks.targets import Verdict

GOOD, BAD, FAINT = "green", "red", "dim"


def show(console: Console, results: Results, verdicts: list[Verdict]) -> None:
    """Print everything that was measured."""
    for table in _tables(results, verdicts):
        if table.row_count:
            console.print(table)
            console.print()
    for failure in results.failures():
        console.print(f"failed: {failure}", style=BAD, markup=False, highlight=False)
    loads = [load for load in results.load if load is not None]
    if loads and loads[0] > 0.5:
        console.print(
            f"Other programs were running (load {loads[0]:.1f} at the start): measure again on a "
            f"quiet machine.",
            style="yellow",
        )


def _tables(results: Results, verdicts: list[Verdict]) -> Iterator[Table]:
    for model in results.models:
        yield _speeds(results, model)
        for peer, name in (*FRONT_ENDS.items(), *OTHER_FORMS.items()):
            yield _front_end(results, model, peer, name)
    yield _copy(results)
    yield _denormals(results)
    yield _overhead(results)
    yield _training(results)
    yield _startup(results)
    yield cold.table([(m, c, {cold.NOW: found}) for m, c, found in results.cold()])
    yield load.table(results.loads())
    yield _targets(verdicts)


def _new(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _speeds(results: Results, model: str) -> Table:
    peers = [p for p in results.peers if any(results.speed(model, c, p) for c in results.cases)]
    title = f"{model}: one step in ms, and how many times faster isostep is"
    table = _new(title, "rule", "isostep", *(LABELS[p] for p in peers))
    for case in results.cases:
        own = results.own_ms(model, case)
        if own is None or not peers:
            continue
        cells = [_speed(results, model, case, peer) for peer in peers]
        table.add_row(case, _milliseconds(own), *cells)
    return table


def _front_end(results: Results, model: str, peer: str, name: str) -> Table:
    title = f"{model}: {name} in place of {LABELS[peer]}, one step in ms"
    table = _new(title, "rule", name, LABELS[peer])
    for case in results.cases:
        found = results.speed(model, case, peer, name)
        if found:
            own = _milliseconds(found.own_ms)
            table.add_row(case, own, _speed(results, model, case, peer, name))
    return table


def _speed(results: Results, model: str, case: str, peer: str, own: str = NAME) -> Text:
    found = results.speed(model, case, peer, own)
    if found is None:
        return Text("-", style=FAINT)
    kind = found.kind.removeprefix(peer).strip()
    known = f"{kind} " if kind and peer == "torch" and "clip" not in kind else ""
    return Text.assemble(
        (known, FAINT),
        f"{_milliseconds(found.peer_ms)} ",
        (f"{found.ratio:.2f}x", GOOD if found.ratio >= 1 else BAD),
    )


def _copy(results: Results) -> Table:
    table = _new("Of the copy limit (and GB/s)", "rule", *results.models)
    for case in results.cases:
        found = [results.copy_share(model, case) for model in results.models]
        if any(found):
            table.add_row(case, *(f"{f[0]:.0%} ({f[1] / 1e9:.1f})" if f else "-" for f in found))
    return table


def _denormals(results: Results) -> Table:
    cells = [(m, c, results.slowdown(m, c)) for m in results.models for c in results.cases]
    names = list(dict.fromkeys(name for _, _, found in cells for name in found))
    table = _new("Gradients of 1e-20: times longer than usual", "rule", "model", *names)
    for model, case, found in cells:
        if found:
            values = (f"{found[n]:.2f}x" if n in found else "-" for n in names)
            table.add_row(case, model, *values)
    return table


def _overhead(results: Results) -> Table:
    columns = ("rule", "of", "model", "tensors", "step", "kernels", "Python")
    table = _new("Where a step's time goes, ms", *columns)
    for own in (NAME, *FRONT_ENDS.values()):
        for model in results.models:
            for case in results.cases:
                found = results.overhead(model, case, own)
                if found:
                    values = (f"{found[k]:.3f}" for k in ("step_ms", "kernels_ms", "python_ms"))
                    table.add_row(case, own, model, str(found["tensors"]), *values)
    return table


def _training(results: Results) -> Table:
    columns = ("stepped by", "case", "forward and backward", "step", "step's share")
    table = _new("A training loop of a transformer, ms", *columns)
    for case in results.cases:
        for name, parts in results.training(case).items():
            model, step = parts["model_ms"], parts["step_ms"]
            share = f"{step / (model + step):.1%}"
            table.add_row(name, case, _milliseconds(model), _milliseconds(step), share)
    return table


def _startup(results: Results) -> Table:
    table = _new("Start-up, ms", "what", "median")
    names = {
        "import_ms": "import isostep, NumPy being there",
        "front_end_import_ms": "import isostep.numpy besides",
        "cold_first_step_ms": "import and first AdamW step, no kernel on disk",
        "disk_first_step_ms": "import and first AdamW step, kernel on disk",
    }
    for name, label in names.items():
        if name in results.startup:
            table.add_row(label, f"{results.startup[name]:.0f}")
    return table


def _targets(verdicts: list[Verdict]) -> Table:
    table = _new("Targets", "what", "target", "measured", "")
    for v in verdicts:
        sign, digits = (">=" if v.at_least else "<="), (2 if v.bound < 10 else 0)
        value = "-" if v.measured is None else f"{v.measured:.{digits}f} {v.unit}"
        word = {None: Text("not measured", FAINT), True: Text("met", GOOD)}
        table.add_row(
            v.what, f"{sign} {v.bound:g} {v.unit}", value, word.get(v.met, Text("missed", BAD))
        )
    return table
