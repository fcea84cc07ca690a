"""The loop of the flat layout: a run of elements."""

from __future__ import annotations

from isostep.compile.layout import FLAT_CHUNK
from isostep.compile.pass_writer import PassWriter


class FlatWriter(PassWriter):
    """Writes a pass over runs of elements."""

    def write(self) -> None:
        self._function(f"pass_{self.number}", "chunks", FLAT_CHUNK)
        for name in self._element_names():
            self._array(name, "start")
        self._zero("tensor")
        with self._sweep("i", "length", "tensor"):
            self._body("i")
            self._accumulate("tensor")
        self._keep_tensor_sums()
        self._end()
