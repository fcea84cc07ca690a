"""How the elements of a tensor are walked: which loops a kernel has, and what is one chunk of work.

- `flat`: a run of elements; for everything without rows and columns.
- `rows`: some rows of one matrix; the vector unit runs along a row. Sums per column are finished
  by a second function when all rows of a matrix are done.
- `lanes`: many small matrices (the 3 x 3 kernels of a convolution); the vector unit runs across
  matrices, `LANES` of them side by side, so that short rows do not fall out of it.

Arrays are dense, in the order (batch, rows, columns).
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Layout = Literal["flat", "rows", "lanes"]

CHUNK = 1 << 16  # elements: smaller pays more per chunk, larger balances threads worse
SUM_BLOCK = 512  # elements summed in the dtype of the arithmetic before float64 takes over
LANES = 64
SHORT_MATRIX = 64  # elements of a matrix up to which the lanes layout is used
ALIGNMENT = 64  # bytes: a line of the cache, which no two threads should write
COLUMN_PARTS = 64  # chunks of all tensors together that sums per column are split into
SPARE_SUMS = 1 << 16  # sums per column that cutting matrices may cost, whatever their size,
SPARE_PART = 2000  # and one for so many elements more

# Words of one chunk in the table that a kernel reads.
FLAT_CHUNK = ("tensor", "start", "length")
ROWS_CHUNK = ("tensor", "batch", "first_row", "end_row", "sums_offset")
LANES_CHUNK = ("tensor", "first_batch", "end_batch")
COLUMN_TASK = ("tensor", "batch", "sums_offset", "parts")

Shape3 = tuple[int, int, int]
Table = NDArray[np.int64]


def layout_of(shape: Shape3, factored: bool) -> Layout:
    """The layout for a tensor seen as (batch, rows, columns)."""
    if not factored:
        return "flat"
    batch, rows, columns = shape
    short = rows * columns <= SHORT_MATRIX and columns < 16 and batch >= 8
    return "lanes" if short else "rows"


def flat_chunks(sizes: list[int]) -> Table:
    """Chunks of at most `CHUNK` elements, in the order of the tensors."""
    rows = [
        (tensor, start, min(CHUNK, size - start))
        for tensor, size in enumerate(sizes)
        for start in range(0, size, CHUNK)
    ]
    return _table(rows, FLAT_CHUNK)


def rows_chunks(shapes: list[Shape3], sums: int) -> tuple[Table, Table, int]:
    """Chunks of whole rows, the column tasks that follow, and the length of the column sums.

    `sums` is how many sums per column a pass takes at most.

    A matrix is cut into few chunks, since each keeps a float64 sum per column: `CHUNK` elements or
    a `COLUMN_PARTS`-th of all elements, whichever is more; larger ones where wide matrices would
    take more memory than the spare. The cut does not depend on the number of threads, and so
    neither do the bits of the result.
    """
    total = sum(batch * rows * columns for batch, rows, columns in shapes)
    # Chunks of one element would need this many sums, and larger ones so many times less.
    finest = sums * sum(batch * rows * columns**2 for batch, rows, columns in shapes)
    spare = SPARE_SUMS + total // SPARE_PART
    target = max(CHUNK, total // COLUMN_PARTS, finest // spare)
    chunks: list[tuple[int, ...]] = []
    tasks: list[tuple[int, ...]] = []
    offset = 0
    for tensor, (batches, rows, columns) in enumerate(shapes):
        parts = min(rows, max(1, -(-rows * columns // target)))
        bounds = [rows * part // parts for part in range(parts + 1)]
        for batch in range(batches):
            tasks.append((tensor, batch, offset, parts))
            for first, end in itertools.pairwise(bounds):
                chunks.append((tensor, batch, first, end, offset))
                offset += columns * sums
    return _table(chunks, ROWS_CHUNK), _table(tasks, COLUMN_TASK), offset


def lanes_chunks(shapes: list[Shape3]) -> Table:
    """Chunks of whole small matrices, about `CHUNK` elements each."""
    rows: list[tuple[int, ...]] = []
    for tensor, (batches, height, width) in enumerate(shapes):
        per_chunk = max(LANES, CHUNK // (height * width) // LANES * LANES)
        rows += [
            (tensor, first, min(first + per_chunk, batches))
            for first in range(0, batches, per_chunk)
        ]
    return _table(rows, LANES_CHUNK)


def _table(rows: list[tuple[int, ...]], words: tuple[str, ...]) -> Table:
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(words))
