"""Moving a block of small matrices to where the same element of all of them lies side by side.

The lanes layout works on `LANES` matrices at once. In memory the elements of a matrix lie side by
side; here it is the matrices, so that a loop over them uses the vector unit. The sizes of matrices
are not known to the compiler: one kernel serves all.

Only the compiler imports this module, as `intrinsics`.
"""

# Numba's extension API is untyped, and so is what is written in it.
# pyright: basic

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from isostep.compile.layout import LANES

_WORD = ir.IntType(64)
_SIDE = 8  # matrices, and elements of each, that are moved together
_HALF = _SIDE // 2


def _word(value):
    return ir.Constant(_WORD, value)


class _Mover:
    """The text of a function `(memory, block, size, lanes)`, which moves one way.

    Args:
        function: is given its body.
        item: the type of an element, an integer of its width.
        inward: whether it moves from memory into the block.
    """

    def __init__(self, function, item, inward: bool) -> None:
        self.memory, self.block, self.size, self.lanes = function.args
        self.item, self.inward = item, inward
        self.bytes = item.width // 8
        self.b = ir.IRBuilder(function.append_basic_block("entry"))

    def write(self) -> None:
        b, whole = self.b, self.b.and_(self.lanes, _word(-_SIDE))
        done = b.append_basic_block("done")
        switch = b.switch(self.size, b.append_basic_block("any"))
        ways = dict.fromkeys(range(1, _HALF), self._few)
        ways |= dict.fromkeys(range(_HALF, _SIDE), self._halves)
        for size, way in ways.items():
            block = b.append_basic_block(f"of_{size}")
            switch.add_case(_word(size), block)
            b.position_at_end(block)
            with self._each(_word(0), whole, _SIDE) as lane:
                way(size, lane)
            b.branch(done)
        b.position_at_end(switch.default)
        with self._each(_word(0), whole, _SIDE) as lane:
            last = b.sub(self.size, _word(_SIDE))
            with self._each(_word(0), last, _SIDE) as k:
                self._tile(lane, k)
            self._tile(lane, last)
        b.branch(done)
        b.position_at_end(done)
        with self._each(whole, self.lanes, 1) as lane, self._each(_word(0), self.size, 1) as k:
            self._one(lane, k)
        b.ret_void()

    @contextmanager
    def _each(self, first, end, by):
        with cgutils.for_range_slice(self.b, first, end, _word(by), _WORD) as (index, _):
            yield index

    def _matrix(self, lane, k, width):
        """`width` elements in memory, from element `k` of the matrix of a lane on."""
        return self._at(self.memory, self.b.add(self.b.mul(lane, self.size), k), width)

    def _side(self, lane, k, width):
        """`width` elements in the block, from a lane on, all element `k` of their matrices."""
        return self._at(self.block, self.b.add(self.b.mul(k, _word(LANES)), lane), width)

    def _at(self, pointer, index, width):
        place = self.b.gep(self.b.bitcast(pointer, self.item.as_pointer()), [index])
        kind = ir.VectorType(self.item, width) if width > 1 else self.item
        return self.b.bitcast(place, kind.as_pointer())

    def _load(self, place):
        return self.b.load(place, align=self.bytes)

    def _store(self, value, place):
        self.b.store(value, place, align=self.bytes)

    def _shuffle(self, x, y, mask):
        kind = ir.VectorType(ir.IntType(32), len(mask))
        return self.b.shuffle_vector(x, y, ir.Constant(kind, list(mask)))

    def _few(self, size, lane):
        """Eight matrices of a few elements, which lie in memory as one vector."""
        memory = self._matrix(lane, _word(0), size * _SIDE)
        sides = [self._side(lane, _word(k), _SIDE) for k in range(size)]
        if self.inward:
            together = self._load(memory)
            for k, side in enumerate(sides):
                picked = [k + size * u for u in range(_SIDE)]
                self._store(self._shuffle(together, together, picked), side)
            return
        together = self._together([self._load(side) for side in sides])
        order = [k * _SIDE + u for u in range(_SIDE) for k in range(size)]
        self._store(self._shuffle(together, together, order), memory)

    def _together(self, vectors):
        """One vector of all, in their order."""
        whole, length = vectors[0], _SIDE
        for vector in vectors[1:]:
            wide = [*range(_SIDE), *[_SIDE] * (length - _SIDE)]
            wide = self._shuffle(vector, vector, wide)
            whole = self._shuffle(whole, wide, [*range(length), *range(length, length + _SIDE)])
            length += _SIDE
        return whole

    def _halves(self, size, lane):
        """Eight matrices of less than eight elements, by two halves of a tile which overlap."""
        for k in dict.fromkeys((0, size - _HALF)):
            self._tile(lane, _word(k), _HALF)

    def _tile(self, lane, k, width=_SIDE):
        """Some elements of eight matrices, all of a tile or the first half."""
        b, steps = self.b, [_word(u) for u in range(_SIDE)]
        memory = [self._matrix(b.add(lane, u), k, width) for u in steps]
        block = [self._side(lane, b.add(k, u), _SIDE) for u in steps[:width]]
        there, here = (memory, block) if self.inward else (block, memory)
        rows = [self._widened(self._load(place)) for place in there]
        rows += [ir.Constant(rows[0].type, ir.Undefined)] * (_SIDE - len(rows))
        for distance in (1, 2, 4):
            rows = self._exchanged(rows, distance)
        if not self.inward and width < _SIDE:
            rows = [self._shuffle(row, row, range(width)) for row in rows]
        for row, place in zip(rows, here, strict=False):
            self._store(row, place)

    def _widened(self, row):
        """A row of a tile, of which the first half may be all that is there."""
        length = row.type.count
        places = [k % length for k in range(_SIDE)]
        return row if length == _SIDE else self._shuffle(row, row, places)

    def _exchanged(self, rows, distance):
        """Rows whose elements have changed places with those of others `distance` away, as a
        transposed square needs of each such square in it."""
        low = [k if not k & distance else _SIDE + k - distance for k in range(_SIDE)]
        high = [k + distance if not k & distance else _SIDE + k for k in range(_SIDE)]
        found = list(rows)
        for u in range(_SIDE):
            if not u & distance:
                x, y = rows[u], rows[u + distance]
                found[u], found[u + distance] = self._shuffle(x, y, low), self._shuffle(x, y, high)
        return found

    def _one(self, lane, k):
        there, here = self._matrix(lane, k, 1), self._side(lane, k, 1)
        if not self.inward:
            there, here = here, there
        self._store(self._load(there), here)


def _function(module, size: int, inward: bool):
    """The function that moves elements of so many bytes, written where a module needs it."""
    pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [pointer, pointer, _WORD, _WORD])
    name = f"isostep_{'stage' if inward else 'unstage'}_{size}"
    function = cgutils.get_or_insert_function(module, kind, name)
    if function.is_declaration:
        function.linkage = "linkonce_odr"
        # Apart, it is compiled once, and the loops that call it stay small.
        function.attributes.add("noinline")
        for place in function.args[:2]:
            place.add_attribute("noalias")
        _Mover(function, ir.IntType(8 * size), inward).write()
    return function


def _move(size: int, inward: bool) -> Callable[..., None]:
    @intrinsic
    def move(typingctx, memory, block, elements, lanes):
        def codegen(context, builder, signature, args):
            pointer = ir.IntType(8).as_pointer()
            memory = builder.inttoptr(args[0], pointer)
            side = builder.bitcast(args[1], pointer)
            builder.call(_function(builder.module, size, inward), [memory, side, *args[2:]])
            return context.get_dummy_value()

        word = types.int64
        return types.void(word, block, word, word), codegen

    return move


stage_2, stage_4, stage_8 = (_move(size, inward=True) for size in (2, 4, 8))
unstage_2, unstage_4, unstage_8 = (_move(size, inward=False) for size in (2, 4, 8))
