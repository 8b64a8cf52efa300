"""Ports for servers that cannot choose one themselves."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """A port below those that are given out to whoever asks for any: nothing else takes it until it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("", port))
            return port
