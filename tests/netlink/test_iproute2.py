"""What is asked of tunl0 is what iproute2 asks, octet by octet: strace sees its requests, also where the kernel has no
ipip and refuses them. What `ip` says more or less in a message is named at its case."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from routed.desired import Gateway, KernelRoute, RouteBatch, RouteKind
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.netlink.messages import HEADER_LENGTH, attribute
from routed.netlink.numbers import IFA_F_NODAD, IFA_FLAGS, NLM_F_ACK, RT_TABLE_MAIN, RTM_GETLINK
from routed.netlink.routes import Operation, encode_routes
from routed.netlink.tunnels import change_link, make_ipip, remove_address
from routed.netlink.veth import add_host_address

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
]

#: `lo` stands for tunl0 where a link must be there: its index is 1 in every network namespace.
LO = 1
V4 = Family.IPV4_UNICAST
ADDRESS = parse_address("10.65.1.0")
_LINE = re.compile(r" \| [0-9a-f]{5} ((?: {1,2}[0-9a-f]{2})+)")


def sent_by_ip(*words: str) -> bytes:
    """The last message that `ip WORDS` sends, whatever the kernel says, without its number."""
    trace = ("strace", "-e", "trace=sendmsg,sendto", "-e", "write=3,4", "ip", *words)
    done = subprocess.run(["unshare", "--net", *trace], capture_output=True, text=True, timeout=60, check=False)
    messages: list[bytearray] = []
    for line in done.stderr.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        if line.startswith(" | 00000 "):
            messages.append(bytearray())
        messages[-1] += bytes.fromhex(found[1].replace(" ", ""))
    if not messages:
        pytest.skip(f"strace sees nothing here: {done.stderr[-300:]}")
    assert int.from_bytes(messages[-1][4:6], "little") != RTM_GETLINK, done.stderr
    return without_number(bytes(messages[-1]))


def without_number(message: bytes) -> bytes:
    """Its sequence number and port are the sender's own."""
    return message[:8] + bytes(8) + message[HEADER_LENGTH:]


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        ("link add tunl0 type ipip", make_ipip(1, "tunl0")),
        ("link set lo mtu 1480", change_link(1, LO, mtu=1480)),
        ("link set lo up", change_link(1, LO, up=True)),
        ("link set lo down", change_link(1, LO, up=False)),
        ("addr del 10.65.1.0/32 dev lo", remove_address(1, LO, V4, ADDRESS, 32)),
    ],
    ids=["make", "mtu", "up", "down", "address-gone"],
)
def test_the_same_octets(words: str, ours: bytes) -> None:
    assert without_number(ours) == sent_by_ip(*words.split())


def test_an_address() -> None:
    """Beside what `ip` sends we say that no duplicate is looked for, which IPv4 does not do anyway."""
    ours, theirs = without_number(add_host_address(1, LO, V4, ADDRESS)), sent_by_ip(
        *["addr", "replace", "10.65.1.0/32", "dev", "lo"]
    )  # fmt: skip
    more = attribute(IFA_FLAGS, IFA_F_NODAD.to_bytes(4, "little"))
    assert ours[4:] == theirs[4:] + more and len(ours) == len(theirs) + len(more)


def test_a_route_into_the_tunnel() -> None:
    """We ask for no acknowledgement of each: a refusal is told all the same."""
    gateway = Gateway(parse_address("10.0.0.2"), LO, onlink=True)
    _, prefix = parse_prefix("10.65.2.0/26")
    batch = RouteBatch(V4, (prefix,), KernelRoute(RouteKind.UNICAST, (gateway,)))
    ours = bytearray(
        without_number(
            encode_routes(
                batch, table=RT_TABLE_MAIN, protocol=120, sequence=1, create=Operation.EXCLUSIVE, metric=0
            )
        )
    )  # fmt: skip
    ours[6] |= NLM_F_ACK
    words = "route add 10.65.2.0/26 via 10.0.0.2 dev lo proto 120 onlink"
    assert bytes(ours) == sent_by_ip(*words.split())
