"""tunl0, the kernel's own device of its module ipip, which the kernels we test on lack: what one that has it is asked."""

from __future__ import annotations

import errno
import sys

import pytest

from routed.dataplane import tunnels
from routed.dataplane.tunnels import TunnelKernel
from routed.desired import Tunnel, TunnelKind, TunnelPeer
from routed.errors import KernelError
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.netlink.links import IFADDRMSG, IFINFOMSG
from routed.netlink.messages import HEADER, HEADER_LENGTH, Message, attribute
from routed.netlink.numbers import (
    AF_INET,
    AF_UNSPEC,
    IFA_LOCAL,
    IFF_UP,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
)

ADDRESS, STALE = parse_address("10.65.0.1"), parse_address("10.65.9.9")
OTHER = parse_address("10.0.0.2")
TUNNEL = Tunnel(
    "tunl0", TunnelKind.IPIP, Family.IPV4_UNICAST, ADDRESS, parse_address("10.0.0.1"), mtu=1400,
    peers=(TunnelPeer("n2", OTHER, b"", OTHER, b""),),
)  # fmt: skip


def u32(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


class Kernel:
    """The part of rtnetlink that tunl0 meets: a module whose own device has the name that is asked for."""

    def __init__(self, *, module: bool = True) -> None:
        self.module, self.loaded, self.up, self.mtu = module, False, False, 1480
        self.addresses: list[bytes] = []
        self.changes = 0
        self.number = 0

    def next(self) -> int:
        self.number += 1
        return self.number

    def ask_all(self, requests: list[bytes], what: str) -> list[Message]:
        return [answer for each in requests for answer in self.ask(each, what)]

    def ask(self, request: bytes, what: str) -> list[Message]:
        kind, body = HEADER.unpack_from(request)[1], request[HEADER_LENGTH:]
        if kind == RTM_GETLINK:
            if b"tunl0" not in body or not self.loaded:
                raise KernelError(errno.ENODEV, "", what)
            return [self.link()]
        self.changes += 1
        if kind == RTM_NEWLINK and b"ipip" in body:
            if not self.module:
                raise KernelError(errno.EOPNOTSUPP, "", what)
            self.loaded = True
            raise KernelError(errno.EEXIST, "", what)
        if kind == RTM_NEWLINK:
            _, _, _, index, flags, change = IFINFOMSG.unpack_from(body)
            assert index == 5
            self.up = bool(flags & IFF_UP) if change & IFF_UP else self.up
            self.mtu = 1400 if attribute(IFLA_MTU, u32(1400)) in body else self.mtu
        elif kind == RTM_NEWADDR:
            assert ADDRESS in body
            self.addresses.append(ADDRESS)
        else:
            assert kind == RTM_DELADDR, "it is never removed, and has no forwarding entries and no neighbours"
            self.addresses = [each for each in self.addresses if each not in body]
        return []

    def dump(self, request: bytes, what: str) -> list[Message]:
        assert HEADER.unpack_from(request)[1] == RTM_GETADDR, what
        return [
            self.message(RTM_NEWADDR, IFADDRMSG.pack(AF_INET, 32, 0, 0, 5) + attribute(IFA_LOCAL, each))
            for each in self.addresses
        ]

    def link(self) -> Message:
        body = IFINFOMSG.pack(AF_UNSPEC, 0, 768, 5, IFF_UP if self.up else 0, 0)
        body += attribute(IFLA_IFNAME, b"tunl0\x00") + attribute(IFLA_MTU, u32(self.mtu))
        return self.message(RTM_NEWLINK, body + attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"ipip\x00")))

    @staticmethod
    def message(kind: int, body: bytes) -> Message:
        return Message(kind, 0, 0, 0, HEADER.pack(HEADER_LENGTH + len(body), kind, 0, 0, 0) + body)


def on(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> TunnelKernel:
    monkeypatch.setattr(tunnels, "open_exchange", lambda: kernel)
    return TunnelKernel()


def test_the_kernel_s_device_is_used_and_given_back(monkeypatch: pytest.MonkeyPatch):
    kernel = Kernel()
    made = on(kernel, monkeypatch)
    (state,), problems = made.make([TUNNEL])
    assert (state.index, state.mtu, problems) == (5, 1400, [])
    assert (kernel.up, kernel.mtu, kernel.addresses) == (True, 1400, [ADDRESS])
    before = kernel.changes
    made.make([TUNNEL])
    assert kernel.changes == before  # what is right is left alone
    kernel.addresses.append(STALE)
    kernel.up = False
    made.make([TUNNEL])
    assert kernel.up and kernel.addresses == [ADDRESS]
    assert made.make([]) == ([], [])
    assert (kernel.loaded, kernel.up, kernel.addresses) == (True, False, [])
    before = kernel.changes
    assert made.make([]) == ([], []) and kernel.changes == before


def test_a_kernel_without_the_module_is_told_of(monkeypatch: pytest.MonkeyPatch):
    states, (problem,) = on(Kernel(module=False), monkeypatch).make([TUNNEL])
    assert states == [] and "the kernel has no ipip: load the module ipip" in problem
