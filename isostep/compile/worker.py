"""A process that compiles kernels for the one that has started it: `python -c "...serve()"`.

It reads requests from its standard input and writes machine code to its standard output, each with
its length and digest, and ends with its input. It imports Numba and nothing of a framework, and
keeps nothing: what it makes is kept by who has asked for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import IO, Any

_HEAD, _DIGEST = 8, hashlib.sha256
_MOST = 1 << 28
"""Bytes of a message: whoever announces more writes something else."""


def send(stream: IO[bytes], content: bytes) -> None:
    """Write a message.

    Raises:
        OSError: nobody reads.
    """
    stream.write(len(content).to_bytes(_HEAD, "big") + _DIGEST(content).digest() + content)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """Read a message.

    Raises:
        EOFError: there is none, or it has no end.
        ValueError: it is something else.
    """
    head = _exactly(stream, _HEAD + _DIGEST().digest_size)
    length = int.from_bytes(head[:_HEAD], "big")
    if length > _MOST:
        raise ValueError("a message of a worker is too long")
    content = _exactly(stream, length)
    if _DIGEST(content).digest() != head[_HEAD:]:
        raise ValueError("a message of a worker is damaged")
    return content


def _exactly(stream: IO[bytes], length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise EOFError("a worker has ended")
    return content


def request(source: str, flushing: int | None, name: str) -> bytes:
    """What `serve` reads: arguments of `machine_code.build`, and the name of the entry."""
    return json.dumps([source, flushing, name]).encode()


def serve() -> None:
    """Answer requests until there are no more. An empty answer: it cannot."""
    from isostep.compile import machine_code

    # Whatever is printed goes elsewhere.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            asked: list[Any] = json.loads(receive(sys.stdin.buffer))
        except EOFError:
            return
        send(answers, _answer(machine_code, *asked))


def _answer(machine_code: Any, source: str, flushing: int | None, name: str) -> bytes:
    try:
        return machine_code.compiled(source, flushing, name) or b""
    except Exception:  # it is seen where the kernel is compiled next, which is where it is needed
        return b""
