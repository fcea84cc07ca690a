"""XLA's C interface for calls out of a compiled program, as far as kernels need it.

A handler gets the address of a call frame and finds there where the arrays lie that it reads and
writes. The structures follow `xla/ffi/api/c_api.h`, which JAX brings along
(`jax.ffi.include_dir()`); XLA refuses a handler that follows a version which it does not know. A
frame of a thousand arrays is read by one small kernel.

The handler is a Python function, and takes the interpreter's lock as JAX' own callbacks do; kernels
run without it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from isostep.compile import machine_code
from isostep.engines import threads

Addresses = NDArray[np.int64]
Call = Callable[[Addresses, Addresses], None]
"""Gets the addresses of operands and results."""

MAJOR, MINOR = 0, 3  # the version of the interface that the structures below follow
_EXECUTE = 3  # the stage at which arrays can be read and written
_METADATA = 1  # the extension by which XLA asks for what is known of a handler
_INTERNAL = 13  # the code of errors that are not the caller's

_SOURCE = """
from isostep.compile.intrinsics import int64_at

DATA = 3  # words before the address of the data in a buffer


def read(low, high, context):
    tables = int64_at(context)
    buffers, found = int64_at(tables[0]), int64_at(tables[1])
    for k in range(low, high):
        found[k] = int64_at(buffers[k])[DATA]
"""


class _Version(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    )


class _Api(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("error_create", ctypes.c_void_p),
    )


class _Arrays(ctypes.Structure):
    """`XLA_FFI_Args` and `XLA_FFI_Rets`."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("buffers", ctypes.c_void_p),
    )


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("names", ctypes.c_void_p),
        ("values", ctypes.POINTER(ctypes.c_void_p)),
    )


class _Scalar(ctypes.Structure):
    _fields_ = (("dtype", ctypes.c_int), ("value", ctypes.POINTER(ctypes.c_int64)))


class _Frame(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("operands", _Arrays),
        ("results", _Arrays),
        ("attributes", _Attributes),
    )


class _Metadata(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("version", _Version),
        ("traits", ctypes.c_uint32),
    )


class _Extension(ctypes.Structure):
    """`XLA_FFI_Metadata_Extension`; other extensions are its first three fields."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    )


class _Error(ctypes.Structure):
    """`XLA_FFI_Error_Create_Args`."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    )


_CREATE_ERROR = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
_HANDLER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


class Target:
    """A name under which XLA finds what it is to call.

    Args:
        name: in compiled programs, besides which they state the number of the call.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        # Compiled programs may run as long as the process: nothing is taken out again.
        self._calls: dict[int, tuple[str, Call]] = {}
        self._handler = _HANDLER(self._handle)
        self._kernel = machine_code.build(_SOURCE).addresses["read"]
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(self._handler), platform="cpu")

    def add(self, number: int, identity: str, make: Callable[[], Call]) -> None:
        """Take a call in, unless it is there.

        Args:
            number: by which programs name it.
            identity: all that it depends on.
            make: makes it.

        Raises:
            ValueError: the number is another call's.
        """
        if number not in self._calls:
            self._calls[number] = identity, make()
        if self._calls[number][0] != identity:
            raise ValueError(f"{self.name}: two calls have the number {number}")

    def _handle(self, address: int) -> int | None:
        """The handler; what it returns is the address of an error."""
        frame = _Frame.from_address(address)
        try:
            if frame.extension:
                _describe(frame.extension)
            elif frame.stage == _EXECUTE:
                number = _Scalar.from_address(frame.attributes.values[0]).value[0]
                _, call = self._calls[number]
                call(self._addresses(frame.operands), self._addresses(frame.results))
            return None
        except BaseException as error:  # nothing may be raised through XLA
            return _error(frame, f"{self.name}: {type(error).__name__}: {error}")

    def _addresses(self, arrays: Any) -> Addresses:
        found = np.empty(arrays.size, dtype=np.int64)
        context = np.array([arrays.buffers or 0, found.ctypes.data], dtype=np.int64)
        bounds = np.array([[0, arrays.size]], dtype=np.int64)
        threads.serially(self._kernel, bounds, int(context.ctypes.data))
        return found


def _describe(extension: int) -> None:
    """Tell XLA, if it asks, which version of the interface the handler follows."""
    asked = _Extension.from_address(extension)
    if asked.type == _METADATA:
        metadata = asked.metadata.contents
        metadata.version.major, metadata.version.minor = MAJOR, MINOR
        metadata.traits = 0


def _error(frame: Any, message: str) -> int | None:
    made = _Error(ctypes.sizeof(_Error), None, message.encode(), _INTERNAL)
    return _CREATE_ERROR(frame.api.contents.error_create)(ctypes.addressof(made))
