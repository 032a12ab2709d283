"""Commands as the server reads them: arrays of bulk strings (RESP 2). Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

Argument = bytes | str | int | float
Command = tuple[Argument, ...]


def pack_in_python(command: Command) -> bytes:
    """Three times as fast as redis-py, and a third as fast as hiredis."""
    parts = [b"*%d\r\n" % len(command)]
    for argument in command:
        raw = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)


pack: Callable[[Command], bytes]
try:
    from hiredis import pack_command
except ImportError:
    pack = pack_in_python
else:
    pack = cast(Callable[[Command], bytes], pack_command)
