"""One node with routed and one top-of-rack switch with somebody else's router, on a wire with both families.

The node is 10.0.0.1 and fd00::1 in AS 65001, the switch 10.0.0.254 and fd00::254 in AS 65100. The switch announces
192.0.2.0/24 and 2001:db8:1::/48, each with the community 65100:7 (where its configuration language can say that) and takes
all it hears; routed announces its blocks 10.244.1.0/26 and fd44:1::/122.
"""

from __future__ import annotations

from collections.abc import Callable

from routed.testing.capture import Capture
from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.routers import Bird, ExaBgp, Frr, GoBgp, OpenBgpd, Routed, Router, resource
from tests.lab.topology import SOON

NODE_AS, TOR_AS = 65001, 65100
NODE4, NODE6 = "10.0.0.1", "fd00::1"
TOR4, TOR6 = "10.0.0.254", "fd00::254"
BLOCK4, BLOCK6 = "10.244.1.0/26", "fd44:1::/122"
NET4, NET6 = "192.0.2.0/24", "2001:db8:1::/48"


def bird(
    namespace: Namespace,
    asn: int = TOR_AS,
    node_as: int = NODE_AS,
    extra: str = "",
    *,
    recover: bool = False,
    passive: bool = False,
) -> Bird:
    def session(version: int, local: str, remote: str) -> str:
        family = f"ipv{version}"
        return (
            f"protocol bgp node{version} {{ local {local} as {asn}; neighbor {remote} as {node_as}; {extra}\n"
            f"  passive {'yes' if passive else 'no'};"
            f"  connect delay time 1; connect retry time 2; error wait time 1, 2;\n"
            f"  {family} {{ import all; export filter {{ bgp_community.add((65100, 7)); accept; }}; }}; }}\n"
        )

    return Bird(
        namespace,
        f"router id {TOR4};\nprotocol device {{}}\n"
        "protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }\n"
        "protocol kernel { ipv6 { import none; export where source = RTS_BGP; }; }\n"
        f"protocol static {{ ipv4; route {NET4} blackhole; }}\n"
        f"protocol static {{ ipv6; route {NET6} blackhole; }}\n" + session(4, TOR4, NODE4) + session(6, TOR6, NODE6),
        recover=recover,
    )


def frr(
    namespace: Namespace, asn: int = TOR_AS, node_as: int = NODE_AS, extra: str = "", *, passive: bool = False
) -> Frr:
    neighbors = "".join(
        f" neighbor {address} remote-as {node_as}\n neighbor {address} timers 3 9\n neighbor {address} timers connect 1\n"
        + (f" neighbor {address} passive\n" if passive else "")
        for address in (NODE4, NODE6)
    )
    return Frr(
        namespace,
        f"router bgp {asn}\n bgp router-id {TOR4}\n no bgp ebgp-requires-policy\n no bgp network import-check\n"
        f" no bgp default ipv4-unicast\n{extra}{neighbors}"
        f" address-family ipv4 unicast\n  network {NET4} route-map tag\n  neighbor {NODE4} activate\n"
        f" address-family ipv6 unicast\n  network {NET6} route-map tag\n  neighbor {NODE6} activate\n"
        " exit-address-family\nexit\nroute-map tag permit 10\n set community 65100:7\nexit\n",
    )


def gobgp(
    namespace: Namespace, asn: int = TOR_AS, node_as: int = NODE_AS, *, graceful: bool = False, passive: bool = False
) -> GoBgp:
    """Its routes are no part of its configuration: `announce` gives them to it, each time it has started."""

    def neighbor(address: str, family: str) -> str:
        return (
            f'[[neighbors]]\n[neighbors.config]\nneighbor-address = "{address}"\npeer-as = {node_as}\n'
            f"[neighbors.transport.config]\npassive-mode = {str(passive).lower()}\n"
            "[neighbors.timers.config]\nconnect-retry = 5\nhold-time = 9\nkeepalive-interval = 3\n"
            f"[neighbors.graceful-restart.config]\nenabled = {str(graceful).lower()}\nrestart-time = 60\n"
            f'[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = "{family}-unicast"\n'
            f"[neighbors.afi-safis.mp-graceful-restart.config]\nenabled = {str(graceful).lower()}\n"
        )

    return GoBgp(
        namespace,
        f'[global.config]\nas = {asn}\nrouter-id = "{TOR4}"\n' + neighbor(NODE4, "ipv4") + neighbor(NODE6, "ipv6"),
    )


def openbgpd(namespace: Namespace, asn: int = TOR_AS, node_as: int = NODE_AS, *, passive: bool = False) -> OpenBgpd:
    config = f"AS {asn}\nrouter-id {TOR4}\n"
    for own, prefix, peer, carried, other in ((TOR4, NET4, NODE4, 4, 6), (TOR6, NET6, NODE6, 6, 4)):
        config += (
            f"network {prefix} set community 65100:7\n"
            f"neighbor {peer} {{\n remote-as {node_as}\n local-address {own}\n holdtime 9\n{' passive' if passive else ''}\n"
            f" announce IPv{carried} unicast\n announce IPv{other} none\n}}\n"
        )
    return OpenBgpd(namespace, config + "allow from any\nallow to any\n")


def exabgp(
    namespace: Namespace, asn: int = TOR_AS, node_as: int = NODE_AS, *, graceful: bool = False, passive: bool = False
) -> ExaBgp:
    def neighbor(local: str, remote: str, version: int, route: str) -> str:
        return (
            f"neighbor {remote} {{ router-id {TOR4}; local-address {local}; local-as {asn}; peer-as {node_as};\n"
            f"  family {{ ipv{version} unicast; }} {'passive true; listen 179;' if passive else ''}\n"
            f"  capability {{ graceful-restart {60 if graceful else 'disable'}; }}\n"
            f"  static {{ route {route} next-hop {local} community [65100:7]; }}\n"
            "  api { processes [ watch ]; neighbor-changes; receive { parsed; update; } } }\n"
        )

    return ExaBgp(namespace, neighbor(TOR4, NODE4, 4, NET4) + neighbor(TOR6, NODE6, 6, NET6))


def announce(tor: Router) -> None:
    """What the others have in their configuration, for GoBGP; what it is told in its first moments it may lose."""
    if isinstance(tor, GoBgp):
        for family, prefix, hop in (("ipv4", NET4, TOR4), ("ipv6", NET6, TOR6)):

            def has_it(family: str = family, prefix: str = prefix, hop: str = hop) -> bool:
                tor.ctl("global", "rib", "-a", family, "add", prefix, "nexthop", hop, "community", "65100:7")
                return prefix in tor.routes(ipv6=family == "ipv6")

            wait_for(has_it, SOON, f"GoBGP has {prefix}", every=0.2)


#: The fixture `on_the_wire`: a namespace, its interface, and the addresses to be judged.
Wire = Callable[..., Capture]

TORS: dict[str, Callable[..., Router]] = {
    "bird": bird,
    "frr": frr,
    "gobgp": gobgp,
    "openbgpd": openbgpd,
    "exabgp": exabgp,
}


def node_and_tor(lab: Lab, node_as: int = NODE_AS, tor_as: int = TOR_AS) -> tuple[Routed, Namespace]:
    """The two namespaces and their wire, and routed ready to be started."""
    node, tor = lab.namespace("node", forward=True), lab.namespace("tor", forward=True)
    lab.link(node.port("eth0", f"{NODE4}/24", f"{NODE6}/64"), tor.port("eth0", f"{TOR4}/24", f"{TOR6}/64"))
    routed = Routed(node)
    routed.put(
        resource(
            "Node", "node", {"bgp": {"ipv4Address": f"{NODE4}/24", "ipv6Address": f"{NODE6}/64", "asNumber": node_as}}
        ),
        resource("BGPPeer", "tor4", {"node": "node", "peerIP": TOR4, "asNumber": tor_as}),
        resource("BGPPeer", "tor6", {"node": "node", "peerIP": TOR6, "asNumber": tor_as}),
        resource("BlockAffinity", "block4", {"node": "node", "cidr": BLOCK4}),
        resource("BlockAffinity", "block6", {"node": "node", "cidr": BLOCK6}),
    )
    return routed, tor


def wait_for_sessions(routed: Routed, tor: Router, deadline: float = SOON) -> None:
    wait_for(
        lambda: routed.established(TOR4, TOR6) and tor.established(NODE4, NODE6),
        deadline,
        "both sessions are up on both ends",
        state=lambda: (routed.sessions(), tor.sessions()),
    )


def wait_for_routes(routed: Routed, tor: Router, deadline: float = SOON) -> None:
    """Each knows the other's networks, and routed has them in the kernel."""
    wait_for(
        lambda: (
            routed.kernel_routes().get(NET4) == f"via {TOR4} dev eth0"
            and routed.kernel_routes(ipv6=True).get(NET6) == f"via {TOR6} dev eth0"
            and BLOCK4 in tor.routes()
            and BLOCK6 in tor.routes(ipv6=True)
        ),
        deadline,
        "all networks are known on both ends",
        state=lambda: (routed.kernel_routes(), routed.kernel_routes(ipv6=True), tor.routes(), tor.routes(ipv6=True)),
    )
