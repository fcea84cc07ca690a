"""The few operations of generated kernels that Numba does not spell: typed pointers at an address,
half-precision conversions, and floating-point operations with exactly the freedom we allow.

Only the compiler imports this module, and with it Numba; running a cached kernel needs neither.
"""

# Numba's extension API is untyped, and so is what is written in it.
# pyright: basic

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from isostep.compile import target


def _pointer(element):
    @intrinsic
    def pointer(typingctx, address):
        """The address as a pointer to this element type; indexing it is not checked."""

        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), codegen

    return pointer


int64_at = _pointer(types.int64)
float64_at = _pointer(types.float64)
float32_at = _pointer(types.float32)
float16_at = _pointer(types.uint16)
bfloat16_at = _pointer(types.uint16)


@intrinsic
def call_at(typingctx, function, argument):
    """Call the C function at an address with one pointer; what it returns is a pointer too."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        pointer = ir.FunctionType(word, [word]).as_pointer()
        return builder.call(builder.inttoptr(args[0], pointer), [args[1]])

    return types.int64(types.int64, types.int64), codegen


_APART = "isostep_apart"


def _apart(module):
    """A function that returns its argument as a pointer which nothing else points into.

    Saying so is all that it is for: loops over memory known to lie apart go to the vector unit
    without asking. Inlined, it would say nothing.
    """
    word, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(module, ir.FunctionType(pointer, [word]), _APART)
    if function.is_declaration:
        function.linkage = "internal"
        function.attributes.add("noinline")
        function.return_value.add_attribute("noalias")
        builder = ir.IRBuilder(function.append_basic_block())
        builder.ret(builder.inttoptr(function.args[0], pointer))
    return function


def _scratch(element):
    @intrinsic
    def scratch(typingctx, address):
        """The address as a pointer to elements that are reached through this pointer only."""

        def codegen(context, builder, signature, args):
            pointer = builder.call(_apart(builder.module), args)
            return builder.bitcast(pointer, context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), codegen

    return scratch


def _unary(name, argument, result, emit):
    @intrinsic
    def operation(typingctx, x):
        def codegen(context, builder, signature, args):
            return emit(builder, args[0])

        return result(argument), codegen

    operation.__name__ = name
    return operation


def _llvm(builder, name, value, *others):
    suffix = {ir.FloatType(): "f32", ir.DoubleType(): "f64"}[value.type]
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(value.type, [value.type] * (1 + len(others))),
        f"llvm.{name}.{suffix}",
    )
    return builder.call(function, [value, *others])


def _same_type(name, emit, operands):
    """An operation whose operands and result have one floating type."""

    def one(typingctx, x):
        return x(x), lambda context, builder, signature, args: emit(builder, *args)

    def two(typingctx, x, y):
        return x(x, x), lambda context, builder, signature, args: emit(builder, *args)

    operation = intrinsic(one if operands == 1 else two)
    operation.__name__ = name
    return operation


def _isfinite(builder, x):
    difference = builder.fsub(x, x)  # NaN for infinities and NaN, zero otherwise
    finite = builder.fcmp_ordered("ord", difference, difference)
    return builder.select(finite, ir.Constant(x.type, 1.0), ir.Constant(x.type, 0.0))


def _sign(builder, x):
    zero = ir.Constant(x.type, 0.0)
    one = _llvm(builder, "copysign", ir.Constant(x.type, 1.0), x)
    is_zero_or_nan = builder.fcmp_unordered("ueq", x, zero)
    return builder.select(is_zero_or_nan, x, one)


sqrt = _same_type("sqrt", lambda b, x: _llvm(b, "sqrt", x), 1)
absolute = _same_type("absolute", lambda b, x: _llvm(b, "fabs", x), 1)
sign = _same_type("sign", _sign, 1)
isfinite = _same_type("isfinite", _isfinite, 1)
# The NaN of either operand is the result, as in NumPy.
maximum = _same_type("maximum", lambda b, x, y: _llvm(b, "maximum", x, y), 2)
minimum = _same_type("minimum", lambda b, x, y: _llvm(b, "minimum", x, y), 2)
# A sum may be taken in any order, so that it uses the vector unit; nothing else may.
accumulate = _same_type("accumulate", lambda b, x, y: b.fadd(x, y, flags=("reassoc",)), 2)


def _integer(name, emit):
    """An operation on two whole numbers."""

    def two(typingctx, x, y):
        return _INT64, lambda context, builder, signature, args: emit(builder, *args)

    two.__name__ = name
    return intrinsic(two)


_INT64 = types.int64(types.int64, types.int64)
BUILTINS = {
    "min": _integer("least", lambda b, x, y: b.select(b.icmp_signed("<", x, y), x, y)),
    "max": _integer("greatest", lambda b, x, y: b.select(b.icmp_signed(">", x, y), x, y)),
}
"""In place of Python's own, of two whole numbers: Numba has functions for these, which would be
compiled first."""


@intrinsic
def select(typingctx, condition, x, y):
    """`x` where `condition`, else `y`, without a branch."""

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return x(types.boolean, x, x), codegen


_F32, _F64 = ir.FloatType(), ir.DoubleType()
_I16, _I32 = ir.IntType(16), ir.IntType(32)


def _i32(value):
    return ir.Constant(_I32, value)


# Half precision is converted by the processor, else in integers, to the same bits. LLVM would call
# a compiler's runtime where the processor has no such instruction, and none is there.


def _from_bfloat16(builder, x):
    wide = builder.shl(builder.zext(x, _I32), ir.Constant(_I32, 16))
    return builder.bitcast(wide, _F32)


def _to_bfloat16(builder, x):
    """Round to nearest, ties to even; a NaN stays one."""
    bits = builder.bitcast(x, _I32)
    lowest = builder.and_(builder.lshr(bits, ir.Constant(_I32, 16)), ir.Constant(_I32, 1))
    rounded = builder.add(bits, builder.add(lowest, ir.Constant(_I32, 0x7FFF)))
    quiet = builder.or_(bits, ir.Constant(_I32, 0x00400000))
    chosen = builder.select(builder.fcmp_unordered("uno", x, x), quiet, rounded)
    return builder.trunc(builder.lshr(chosen, ir.Constant(_I32, 16)), _I16)


def _from_float16(builder, x):
    if target.host().converts_half:
        return builder.fpext(builder.bitcast(x, ir.HalfType()), _F32)
    bits = builder.zext(x, _I32)
    sign = builder.shl(builder.and_(bits, _i32(0x8000)), _i32(16))
    size = builder.and_(bits, _i32(0x7FFF))
    moved = builder.shl(size, _i32(13))  # the digits are where those of float32 are
    normal = builder.add(moved, _i32(112 << 23))  # and exponents count from -127, not from -15
    endless = builder.or_(moved, _i32(0x7F800000))
    # A denormal number has the digits of a normal one above its least, and no leading one.
    least = _i32(113 << 23)
    above = builder.bitcast(builder.add(moved, least), _F32)
    denormal = builder.bitcast(builder.fsub(above, builder.bitcast(least, _F32)), _I32)
    found = builder.select(builder.icmp_signed("<", size, _i32(0x0400)), denormal, normal)
    found = builder.select(builder.icmp_signed(">=", size, _i32(0x7C00)), endless, found)
    quiet = builder.or_(endless, _i32(0x00400000))
    found = builder.select(builder.icmp_signed(">", size, _i32(0x7C00)), quiet, found)
    return builder.bitcast(builder.or_(found, sign), _F32)


def _to_float16(builder, x):
    """Round to nearest, ties to even; a NaN stays one."""
    if target.host().converts_half:
        return builder.bitcast(builder.fptrunc(x, ir.HalfType()), _I16)
    bits = builder.bitcast(x, _I32)
    sign = builder.and_(builder.lshr(bits, _i32(16)), _i32(0x8000))
    size = builder.and_(bits, _i32(0x7FFFFFFF))
    lowest = builder.and_(builder.lshr(size, _i32(13)), _i32(1))
    up = builder.add(builder.add(size, lowest), _i32(0x0FFF - (112 << 23)))
    normal = builder.lshr(up, _i32(13))
    # Beside a half, a sum's last digit is that of the denormal numbers.
    half = _i32(126 << 23)
    beside = builder.fadd(builder.bitcast(size, _F32), builder.bitcast(half, _F32))
    denormal = builder.sub(builder.bitcast(beside, _I32), half)
    found = builder.select(builder.icmp_signed("<", size, _i32(113 << 23)), denormal, normal)
    endless = builder.icmp_signed(">=", size, _i32(143 << 23))
    found = builder.select(endless, _i32(0x7C00), found)
    digits = builder.and_(builder.lshr(size, _i32(13)), _i32(0x03FF))
    quiet = builder.or_(digits, _i32(0x7E00))
    found = builder.select(builder.icmp_signed(">", size, _i32(0x7F800000)), quiet, found)
    return builder.trunc(builder.or_(found, sign), _I16)


from_bfloat16 = _unary("from_bfloat16", types.uint16, types.float32, _from_bfloat16)
to_bfloat16 = _unary("to_bfloat16", types.float32, types.uint16, _to_bfloat16)
from_float16 = _unary("from_float16", types.uint16, types.float32, _from_float16)
to_float16 = _unary("to_float16", types.float32, types.uint16, _to_float16)
widen = _unary("widen", types.float32, types.float64, lambda b, x: b.fpext(x, _F64))
narrow = _unary("narrow", types.float64, types.float32, lambda b, x: b.fptrunc(x, _F32))

float64_scratch = _scratch(types.float64)
float32_scratch = _scratch(types.float32)
float16_scratch = _scratch(types.uint16)
bfloat16_scratch = _scratch(types.uint16)
