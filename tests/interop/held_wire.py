"""A wire between a node and a router on which TCP segments wait until they are let go: any order of arrival on purpose.

Of each pair of addresses six things are held: the SYN of the connection the node begins and of the one the router begins,
and on each of the two what carries octets, either way. All else passes, as does, from then on, what was let go once.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from itertools import permutations

from routed.testing.lab import Lab
from routed.testing.lab.namespaces import Port
from routed.values import dataclass

_BGP = 179
_SYN, _ACK = 0x02, 0x10
_ALL_FRAMES = 3
_LOOK = 0.1
_SOL_PACKET, _IGNORE_OUTGOING = 263, 23


@dataclass(frozen=True, slots=True)
class Flow:
    """One of the six."""

    begun_by: str
    """`node` or `router`: who began the connection."""
    sent_by: str
    syn: bool


SYNS = {by: Flow(by, by, syn=True) for by in ("node", "router")}
FLOWS = (*SYNS.values(), *(Flow(by, sender, syn=False) for by in SYNS for sender in SYNS))

#: Every order in which the six can arrive: what a connection carries comes after its SYN.
ORDERS = [
    order
    for order in permutations(FLOWS)
    if all(order.index(SYNS[flow.begun_by]) <= order.index(flow) for flow in FLOWS)
]


class HeldWire:
    """See the module's docstring."""

    def __init__(self, lab: Lab, node: Port, router: Port) -> None:
        wire = lab.namespace("wire")
        lab.link(node, wire.port("node"))
        lab.link(router, wire.port("router"))
        self._ends: dict[str, socket.socket] = {}
        with wire.entered():
            for side in ("node", "router"):
                end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_FRAMES))
                end.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
                end.bind((side, _ALL_FRAMES))
                self._ends[side] = end
        self._lock = threading.Condition()
        self._held: dict[tuple[str, Flow], list[bytes]] = {}
        self._open: set[tuple[str, Flow]] = set()
        self._seen: dict[str, float] = {}
        """When the last frame of each router's address went by."""
        self.longest_pause = 0.0
        """Seconds that nothing was forwarded although it may have been there, the most of them."""
        self._running = True
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._running = False
        self._thread.join()
        for end in self._ends.values():
            end.close()

    def let_go(self, address: str, flow: Flow) -> None:
        with self._lock:
            self._open.add((address, flow))
            for frame in self._held.pop((address, flow), []):
                self._send(flow.sent_by, frame)

    def hold_again(self, address: str) -> None:
        with self._lock:
            self._open -= {(address, flow) for flow in FLOWS}

    def has(self, address: str, *flows: Flow) -> bool:
        """Whether all of these wait."""
        with self._lock:
            return all(self._held.get((address, flow)) for flow in flows)

    def comes(self, address: str, flow: Flow, seconds: float) -> bool:
        """Whether it waits, at the latest after some time: a connection may have ended."""
        with self._lock:
            return self._lock.wait_for(lambda: bool(self._held.get((address, flow))), seconds)

    def is_quiet(self, address: str, seconds: float) -> None:
        """Return once nothing has gone by for so long."""
        with self._lock:
            while (rest := self._seen.get(address, 0.0) + seconds - time.monotonic()) > 0:
                self._lock.wait(rest)

    def _forward(self) -> None:
        sides = {end: side for side, end in self._ends.items()}
        looked = time.monotonic()
        while self._running:
            ready = select.select(list(sides), [], [], _LOOK)[0]
            now = time.monotonic()
            self.longest_pause, looked = max(self.longest_pause, now - looked), now
            for end in ready:
                frame = end.recv(65536)
                with self._lock:
                    self._pass(sides[end], frame)

    def _pass(self, sender: str, frame: bytes) -> None:
        found = _segment(sender, frame)
        if found is not None:
            address, flow, frame = found
            self._seen[address] = time.monotonic()
            self._lock.notify_all()
            if flow is not None and (address, flow) not in self._open:
                held = self._held.setdefault((address, flow), [])
                if flow.syn:
                    held.clear()  # of an attempt that was given up
                held.append(frame)
                return
        self._send(sender, frame)

    def _send(self, sender: str, frame: bytes) -> None:
        with contextlib.suppress(OSError):
            self._ends["router" if sender == "node" else "node"].send(frame)


def _segment(sender: str, frame: bytes) -> tuple[str, Flow | None, bytes] | None:
    """Of a frame of BGP over IPv4: the router's address, what it is of what may be held, and the frame with a checksum."""
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
        return None
    start = 14 + 4 * (frame[14] & 15)
    end = 14 + int.from_bytes(frame[16:18], "big")
    source, destination = struct.unpack_from(">HH", frame, start)
    if _BGP not in (source, destination):
        return None
    begun_by = sender if destination == _BGP else ("router" if sender == "node" else "node")
    address = socket.inet_ntoa(frame[30:34] if sender == "node" else frame[26:30])
    flags, octets = frame[start + 13], end - start - 4 * (frame[start + 12] >> 4)
    flow: Flow | None = None
    if flags & _SYN and not flags & _ACK:
        flow = SYNS[begun_by]
    elif octets:
        flow = Flow(begun_by, sender, syn=False)
    # what comes out of a veth has no checksum yet
    segment = bytearray(frame[start:end])
    segment[16:18] = bytes(2)
    pseudo = frame[26:34] + struct.pack(">HH", socket.IPPROTO_TCP, len(segment))
    segment[16:18] = _checksum(pseudo + segment).to_bytes(2, "big")
    return address, flow, frame[:start] + bytes(segment)


def _checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@contextlib.contextmanager
def held_wire(lab: Lab, node: Port, router: Port) -> Iterator[HeldWire]:
    made = HeldWire(lab, node, router)
    try:
        yield made
    finally:
        made.close()
