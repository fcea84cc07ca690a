"""How the elements of a tensor are walked: which loops a kernel has, and what is one chunk of work.

- `flat`: a run of elements; for everything without rows and columns, and for matrices of a single
  element (the 1 x 1 kernels of a convolution).
- `rows`: some rows of one matrix; the vector unit runs along a row. Sums per column are finished
  by a second function when all rows of a matrix are done.
- `lanes`: many small matrices (the 3 x 3 kernels of a convolution); the vector unit runs across
  matrices, `LANES` of them side by side, so that short rows do not fall out of it.

Arrays are dense, in the order (batch, rows, columns).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Layout = Literal["flat", "rows", "lanes"]

CHUNK = 1 << 16  # elements: smaller pays more per chunk, larger balances threads worse
SUM_BLOCK = 512  # elements summed in the dtype of the arithmetic before float64 takes over
LANES = 64
SHORT_MATRIX = 64  # elements of a matrix up to which the lanes layout is used
ALIGNMENT = 128  # bytes: a line of the cache, or two (Apple's are long), for one thread to write
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
    batch, rows, columns = shape
    if not factored or rows == columns == 1:
        return "flat"
    short = rows * columns <= SHORT_MATRIX and columns < 16 and batch >= 8
    return "lanes" if short else "rows"


def flat_chunks(sizes: ArrayLike) -> Table:
    """Chunks of at most `CHUNK` elements, in the order of the tensors."""
    sizes = np.asarray(sizes, dtype=np.int64)
    tensor, part = _parts(-(-sizes // CHUNK))
    start = part * CHUNK
    return np.stack([tensor, start, np.minimum(CHUNK, sizes[tensor] - start)], axis=1)


def rows_chunks(shapes: ArrayLike, sums: int) -> tuple[Table, Table, int]:
    """Chunks of whole rows, the column tasks that follow, and the length of the column sums.

    `sums` is how many sums per column a pass takes at most.

    A matrix is cut into few chunks, since each keeps a float64 sum per column: `CHUNK` elements or
    a `COLUMN_PARTS`-th of all elements, whichever is more; larger ones where wide matrices would
    take more memory than the spare. The cut does not depend on the number of threads, and so
    neither do the bits of the result.
    """
    batches, rows, columns = np.asarray(shapes, dtype=np.int64).reshape(-1, 3).T
    total = int((batches * rows * columns).sum())
    # Chunks of one element would need this many sums, and larger ones so many times less.
    finest = sums * int((batches * rows * columns**2).sum())
    spare = SPARE_SUMS + total // SPARE_PART
    target = max(CHUNK, total // COLUMN_PARTS, finest // spare)
    parts = np.minimum(rows, np.maximum(1, -(-rows * columns // target)))
    tensor, batch = _parts(batches)
    task, part = _parts(parts[tensor])
    of_chunk = tensor[task]
    first, end = (rows[of_chunk] * (part + k) // parts[of_chunk] for k in (0, 1))
    lengths = columns[of_chunk] * sums
    offsets = np.cumsum(lengths) - lengths
    chunks = np.stack([of_chunk, batch[task], first, end, offsets], axis=1)
    tasks = np.stack([tensor, batch, offsets[part == 0], parts[tensor]], axis=1)
    return chunks, tasks, int(lengths.sum())


def lanes_chunks(shapes: ArrayLike) -> Table:
    """Chunks of whole small matrices, about `CHUNK` elements each."""
    batches, rows, columns = np.asarray(shapes, dtype=np.int64).reshape(-1, 3).T
    most = np.maximum(LANES, CHUNK // (rows * columns) // LANES * LANES)
    tensor, part = _parts(-(-batches // most))
    first = part * most[tensor]
    end = np.minimum(first + most[tensor], batches[tensor])
    return np.stack([tensor, first, end], axis=1)


def _parts(counts: Table) -> tuple[Table, Table]:
    """Each part of each of some things: which thing it is of, and its place among the parts of
    that."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - (np.cumsum(counts) - counts)[of]
