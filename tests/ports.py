"""TCP ports of the loopback address that stay free until a test's server listens there, and while it is down.

They are below the kernel's own range for connections (ip_local_port_range): a port of that range is given to any
program's connection between a test's question and its server's start, and a client that keeps trying to reach a server
that is down may be given the very port it calls, connect to itself and keep the server from coming back.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_FIRST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """So many different ports, picked at random, since other tests ask at the same time."""
    below = range(_FIRST, int(_RANGE.read_text().split()[0]))
    pick = random.SystemRandom()
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = pick.choice(below)
            for family in (socket.AF_INET, socket.AF_INET6):
                sock = held.enter_context(socket.socket(family))
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    sock.bind(("", port))
                except OSError:
                    break
            else:
                ports.append(port)
    return ports


def free_port() -> int:
    return free_ports(1)[0]
