"""This node's interfaces and addresses, read once, and the source the kernel would take to an address.

For what runs before the daemon, or beside it; the daemon itself follows them (`watch`).
"""

from __future__ import annotations

import contextlib
import socket

from routed.dataplane.exchange import open_exchange
from routed.net.addresses import format_address
from routed.netlink.links import decode_address, decode_link, dump_addresses, dump_links
from routed.observed import Interface

#: No packet is sent: any port does.
_PORT = 53

#: Linux's numbers, for which Python has no names.
_IPV6_ADDR_PREFERENCES, _IPV6_PREFER_SRC_PUBLIC = 72, 2


def read_interfaces() -> tuple[list[Interface], frozenset[bytes]]:
    """Those in the network namespace of this thread, and which of their addresses are not to be known by: deprecated,
    temporary or tentative ones. Raises OSError or KernelError."""
    with contextlib.closing(open_exchange()) as kernel:
        links = [
            decode_link(message.data) for message in kernel.dump(dump_links(kernel.next()), "reading the interfaces")
        ]
        addresses = [
            address
            for message in kernel.dump(dump_addresses(kernel.next()), "reading the addresses")
            if (address := decode_address(message.data)) is not None
        ]
    interfaces = [
        Interface(
            link.index,
            link.name,
            link.up,
            tuple((each.address, each.length) for each in addresses if each.index == link.index),
        )
        for link in links
        if link is not None
    ]
    return interfaces, frozenset(each.address for each in addresses if each.passing)


def source_towards(address: bytes) -> bytes | None:
    """The packed source address of packets to this one; None where there is no way to it."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        if family == socket.AF_INET6:  # no temporary one (RFC 5014)
            probe.setsockopt(socket.IPPROTO_IPV6, _IPV6_ADDR_PREFERENCES, _IPV6_PREFER_SRC_PUBLIC)
        try:
            probe.connect((format_address(address), _PORT))
        except OSError:
            return None
        return socket.inet_pton(family, probe.getsockname()[0])
