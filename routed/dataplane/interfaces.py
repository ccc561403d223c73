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


def read_interfaces() -> list[Interface]:
    """In the network namespace of this thread. Raises OSError or KernelError."""
    with contextlib.closing(open_exchange()) as kernel:
        links = [
            decode_link(message.data) for message in kernel.dump(dump_links(kernel.next()), "reading the interfaces")
        ]
        addresses = [
            decode_address(message.data)
            for message in kernel.dump(dump_addresses(kernel.next()), "reading the addresses")
        ]
    return [
        Interface(
            link.index,
            link.name,
            link.up,
            tuple((each.address, each.length) for each in addresses if each is not None and each.index == link.index),
        )
        for link in links
        if link is not None
    ]


def source_towards(address: bytes) -> bytes | None:
    """The packed source address of packets to this one; None where there is no way to it."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((format_address(address), _PORT))
        except OSError:
            return None
        return socket.inet_pton(family, probe.getsockname()[0])
