"""The daemons that are compared, each configured for the same work: the daemon is AS 65000 at 10.250.0.1."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from routed import __version__
from routed.testing.lab import Namespace
from routed.testing.routers import Bird, Frr, Routed, Router, missing, resource

ADDRESS = "10.250.0.1"
AS_NUMBER = 65000
FIRST_PEER_AS = 64600


@dataclass(frozen=True, slots=True)
class Work:
    """What a daemon is to do: hold sessions, pass routes on, perhaps put them into the kernel."""

    mode: str
    """ebgp, ibgp or rr (every peer is a route-reflection client), as in load.c."""
    peers: int
    fib: bool

    def neighbors(self) -> list[tuple[str, int]]:
        """(address, AS) of every peer."""
        return [
            (peer_address(index), FIRST_PEER_AS + index if self.mode == "ebgp" else AS_NUMBER)
            for index in range(self.peers)
        ]


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    """Also the key of `routers.PROGRAMS`."""
    make: Callable[[Namespace, Work], Router]
    version: Callable[[], str]
    protocol: str
    """What `ip route` calls the protocol number of its routes."""

    @property
    def missing(self) -> bool:
        return self.name != "routed" and bool(missing(self.name))


def peer_address(index: int) -> str:
    """As load.c numbers its peers."""
    return f"10.250.{1 + index // 250}.{1 + index % 250}"


def _routed(namespace: Namespace, work: Work) -> Routed:
    accept = [{"action": "Accept"}]
    bgp = {"ipv4Address": f"{ADDRESS}/16", **({"routeReflectorClusterID": ADDRESS} if work.mode == "rr" else {})}
    made = Routed(namespace, "dut", kernel={"programRoutes": work.fib}, log={"level": "info"})
    made.put(
        resource("BGPConfiguration", "default", {"asNumber": AS_NUMBER, "nodeToNodeMeshEnabled": False}),
        resource("Node", "dut", {"bgp": bgp}),
        resource("BGPFilter", "all", {"importV4": accept, "exportV4": accept}),
        *(
            resource("BGPPeer", f"p{index}", {"node": "dut", "peerIP": address, "asNumber": asn, "filters": ["all"]})
            for index, (address, asn) in enumerate(work.neighbors())
        ),
    )
    return made


def _bird(namespace: Namespace, work: Work) -> Bird:
    kernel = "where source = RTS_BGP" if work.fib else "none"
    channel = "import all; export all;" + (" next hop keep;" if work.mode == "rr" else "")
    lines = [
        f"router id {ADDRESS};",
        "protocol device {}",
        "protocol direct { ipv4; }",
        f"protocol kernel {{ ipv4 {{ import none; export {kernel}; }}; }}",
    ]
    for index, (address, asn) in enumerate(work.neighbors()):
        client = " rr client;" if work.mode == "rr" else ""
        lines.append(
            f"protocol bgp p{index} {{ local {ADDRESS} as {AS_NUMBER}; neighbor {address} as {asn}; passive; "
            f"hold time 240;{client} ipv4 {{ {channel} }}; }}"
        )
    return Bird(namespace, "\n".join(lines))


def _frr(namespace: Namespace, work: Work) -> Frr:
    lines = [
        f"router bgp {AS_NUMBER}",
        f" bgp router-id {ADDRESS}",
        " no bgp ebgp-requires-policy",
        " no bgp default ipv4-unicast",
        " timers bgp 60 240",
    ]
    neighbors = work.neighbors()
    for address, asn in neighbors:
        lines += [
            f" neighbor {address} remote-as {asn}",
            f" neighbor {address} passive",
            f" neighbor {address} advertisement-interval 0",
        ]
    lines.append(" address-family ipv4 unicast")
    for address, _ in neighbors:
        lines.append(f"  neighbor {address} activate")
        if work.mode == "rr":
            lines.append(f"  neighbor {address} route-reflector-client")
    lines += [" exit-address-family", "exit"]
    return Frr(namespace, "\n".join(lines) + "\n", program_routes=work.fib)


def _version_of(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else ""


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("bird", _bird, lambda: f"BIRD {_version_of('bird', '--version')}", "bird"),
        Contender("frr", _frr, lambda: f"FRR {_version_of('/usr/lib/frr/bgpd', '--version')}", "bgp"),
        Contender("routed", _routed, lambda: f"routed {__version__}", "120"),
    )
}
