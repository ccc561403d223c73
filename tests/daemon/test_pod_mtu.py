"""The MTU of a pod's interface, and what is said where IPv6 has no room."""

from __future__ import annotations

import pytest

from routed.daemon.pod_mtu import Uplink, pod_mtu
from routed.desired import TunnelKind
from routed.model.resources import IPPool
from routed.model.schema import parse_manifest
from routed.net.families import Family

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


def pool(cidr: str, **spec: object) -> IPPool:
    manifest = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": "v6" if ":" in cidr else "v4"},
        "spec": {"cidr": cidr, **spec},
    }
    found = parse_manifest(manifest)  # type: ignore[arg-type]
    assert isinstance(found, IPPool)
    return found


def over(name: str, mtu: int) -> dict[Family, Uplink]:
    """A node both of whose families leave by the same interface."""
    return dict.fromkeys((V4, V6), Uplink(name, mtu))


BARE = [pool("10.65.0.0/16"), pool("fd00:65::/64")]
TUNNELS = [pool("10.65.0.0/16", vxlanMode="Always"), pool("fd00:65::/64", vxlanMode="CrossSubnet")]


@pytest.mark.parametrize(
    ("uplink", "pools", "families", "mtu"),
    [
        (1500, [], {V4, V6}, 1500),
        (1500, BARE, {V4, V6}, 1500),
        (1500, TUNNELS, {V4}, 1430),  # IPv4 and IPv6 pods reach each other's nodes alike
        (1500, [pool("10.65.0.0/16", ipipMode="Always")], {V4}, 1480),
        (1500, [pool("10.65.0.0/16", vxlanMode="Always", disabled=True)], {V4}, 1500),
        (1350, TUNNELS, {V4, V6}, 1280),
        (1300, TUNNELS, {V4}, 1230),
        # an IPv4 tunnel with less room than IPv6 takes is no reason to go without IPv6
        (1300, [TUNNELS[0], BARE[1]], {V4, V6}, 1280),
        (1300, [TUNNELS[0], BARE[1]], {V4}, 1250),
    ],
)
def test_it_is_the_least_that_any_pool_leaves(
    uplink: int, pools: list[IPPool], families: set[Family], mtu: int
) -> None:
    assert pod_mtu(over("eth0", uplink), pools, {}, families) == (mtu, "")


def test_what_felix_configuration_says_counts() -> None:
    said = {(TunnelKind.VXLAN, V4): 1400, (TunnelKind.VXLAN, V6): 0}
    assert pod_mtu(over("eth0", 1500), TUNNELS[:1], said, {V4}) == (1400, "")
    assert pod_mtu(over("eth0", 1500), TUNNELS, said, {V4}) == (1400, "")


def test_no_room_for_ipv6_is_said_with_what_to_do() -> None:
    _, problem = pod_mtu(over("eth0", 1300), TUNNELS, {}, {V4, V6})
    assert problem == (
        "IPPool v6: eth0 with an MTU of 1300 leaves 1230, too little for IPv6, which takes 1280 (RFC 8200): "
        "raise it to 1350, or use the pool without encapsulation"
    )
    _, problem = pod_mtu(over("", 1200), BARE, {}, {V6})
    assert "the uplink with an MTU of 1200 leaves 1200" in problem and problem.endswith("raise it to 1280")
    _, problem = pod_mtu(over("eth0", 1500), TUNNELS, {(TunnelKind.VXLAN, V6): 1200}, {V6})
    assert problem.startswith("an MTU of 1200, as FelixConfiguration has it")


def test_each_family_has_the_room_its_own_uplink_leaves() -> None:
    """What IPv4 leaves by may have too little room for a tunnel of IPv6, which does not leave by it."""
    uplinks = {V4: Uplink("eth0", 1340), V6: Uplink("eth1", 1500)}
    assert pod_mtu(uplinks, [BARE[0], TUNNELS[1]], {}, {V4, V6}) == (1340, "")
    assert pod_mtu({V4: uplinks[V6], V6: uplinks[V4]}, BARE, {}, {V4, V6}) == (1340, "")
    assert pod_mtu({V4: uplinks[V6], V6: uplinks[V4]}, [], {}, {V4, V6}) == (1340, "")
    _, problem = pod_mtu({V4: uplinks[V6], V6: uplinks[V4]}, [BARE[0], TUNNELS[1]], {}, {V4, V6})
    assert "eth0 with an MTU of 1340 leaves 1270, too little for IPv6" in problem
