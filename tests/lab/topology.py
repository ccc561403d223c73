"""The network most lab tests are about: nodes in one rack, resources that make them a cluster.

Node N is 10.0.0.N and fd00::N, its blocks are 10.244.N.0/26 and fd00:244:N::/122, and the first address of each is on its
loopback: a "pod" that answers pings.
"""

from __future__ import annotations

from typing import Any

from routed.testing.lab import Lab, Namespace
from routed.testing.routers import Json, Routed, resource

CLUSTER_AS = 64512

#: Seconds until whatever should happen soon must have happened, on a machine that runs other tests beside.
SOON = 30.0

#: Seconds until a session that was lost must be back: the back-off between attempts is 30 s at most.
RECONNECT = 45.0


def block(number: int, *, ipv6: bool = False) -> str:
    return f"fd00:244:{number}::/122" if ipv6 else f"10.244.{number}.0/26"


def pod(number: int, *, ipv6: bool = False) -> str:
    return f"fd00:244:{number}::1" if ipv6 else f"10.244.{number}.1"


def address(number: int, *, ipv6: bool = False) -> str:
    return f"fd00::{number}" if ipv6 else f"10.0.0.{number}"


def affinity(number: int, cidr: str, name: str = "") -> Json:
    return resource(
        "BlockAffinity",
        name or f"node-{number}-{cidr.translate(str.maketrans('.:/', '---'))}",
        {"node": f"node-{number}", "cidr": cidr, "state": "confirmed"},
    )


def node(
    number: int, *, ipv4: bool = True, ipv6: bool = True, labels: dict[str, str] | None = None, **bgp: Any
) -> Json:
    """A Node resource."""
    if ipv4:
        bgp["ipv4Address"] = f"{address(number)}/24"
    if ipv6:
        bgp["ipv6Address"] = f"{address(number, ipv6=True)}/64"
    return resource("Node", f"node-{number}", {"bgp": bgp}, **(labels or {}))


def configuration(**spec: Any) -> Json:
    return resource("BGPConfiguration", "default", {"asNumber": CLUSTER_AS, "nodeToNodeMeshEnabled": True, **spec})


def pools() -> list[Json]:
    return [
        resource("IPPool", "pods", {"cidr": "10.244.0.0/16", "blockSize": 26}),
        resource("IPPool", "pods-v6", {"cidr": "fd00:244::/32", "blockSize": 122}),
    ]


def cluster(*numbers: int, ipv4: bool = True, ipv6: bool = True, **bgp_configuration: Any) -> list[Json]:
    """The resources of a cluster of these nodes, one block a node and family."""
    found = [configuration(**bgp_configuration), *pools()]
    for number in numbers:
        found.append(node(number, ipv4=ipv4, ipv6=ipv6))
        if ipv4:
            found.append(affinity(number, block(number)))
        if ipv6:
            found.append(affinity(number, block(number, ipv6=True)))
    return found


class Rack:
    """Namespaces on one layer-2 segment."""

    def __init__(self, lab: Lab, name: str = "rack") -> None:
        self.lab = lab
        self.segment = lab.segment(name)

    def machine(self, name: str, number: int, *, ipv4: bool = True, ipv6: bool = True) -> Namespace:
        """A namespace with the addresses of `number`."""
        made = self.lab.namespace(name, forward=True)
        addresses = [f"{address(number)}/24"] * ipv4 + [f"{address(number, ipv6=True)}/64"] * ipv6
        self.segment.attach(made, "eth0", *addresses)
        return made

    def node(self, number: int, *resources: Json, ipv4: bool = True, ipv6: bool = True, **settings: object) -> Routed:
        """A machine with routed, not started yet, whose datastore holds `resources`."""
        namespace = self.machine(f"node-{number}", number, ipv4=ipv4, ipv6=ipv6)
        namespace.address("lo", *[f"{pod(number)}/32"] * ipv4, *[f"{pod(number, ipv6=True)}/128"] * ipv6)
        routed = Routed(namespace, **settings)
        routed.put(*resources)
        return routed


def start(*routers: Routed) -> None:
    """All at once, and wait until each answers."""
    for router in routers:
        router.launch()
    for router in routers:
        router.wait()


def flaps(routed: Routed) -> dict[str, int]:
    """How many times each session came up."""
    return {peer: row["establishedCount"] for peer, row in routed.neighbors().items()}
