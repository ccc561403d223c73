"""A tunnel into a node's from who is no node: what comes by it would pass for a pod's packets."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from routed.testing.lab import Namespace

DEVICE = "vxlan.calico"


@contextlib.contextmanager
def tunnel(stranger: Namespace, local: str, node: Namespace, remote: str, pod: str) -> Iterator[None]:
    """The stranger has a way to a pod's address through the tunnel of its node, meanwhile."""
    mac = device(node)
    assert mac is not None, "the node has its device"
    stranger.ip(
        f"link add vx type vxlan id 4096 dstport 4789 local {local} remote {remote} nolearning",
        "link set vx up",
        f"route add {pod} dev vx",
        f"neigh add {pod} lladdr {mac['address']} dev vx nud permanent",
    )
    try:
        yield
    finally:
        stranger.ip("link del vx")


def device(node: Namespace) -> dict[str, Any] | None:
    """A node's device of VXLAN, as `ip` tells; None where there is none."""
    links = json.loads(node.run("ip", "-j", "-s", "link"))
    return next((link for link in links if link["ifname"] == DEVICE), None)


def received(node: Namespace) -> int:
    """Packets that came by it."""
    found = device(node)
    assert found is not None
    packets: int = found["stats64"]["rx"]["packets"]
    return packets
