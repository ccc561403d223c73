"""What one router says of a route, and what the next one hears after it went through routed: attribute by attribute.

routed is the middle of a chain: a BIRD on one side announces routes with every attribute BIRD can write, a scripted peer or
another router on the other side says what arrived.
"""

from __future__ import annotations

import json
import re
import struct

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.peer import (
    ScriptedPeer,
    as_path,
    attribute,
    communities,
    four_octet_as,
    local_pref,
    med,
    mp_reach,
    multiprotocol,
    next_hop,
    nlri,
    origin,
    update,
)
from routed.testing.routers import Bird, Frr, Routed, resource
from tests.lab.topology import SOON

NODE, LEFT, RIGHT = "10.0.0.1", "10.0.0.2", "10.0.0.3"
NODE6, LEFT6, RIGHT6 = "fd00::1", "fd00::2", "fd00::3"
NET, NET6 = "192.0.2.0/24", "2001:db8:1::/48"


@pytest.fixture
def chain(lab: Lab) -> tuple[Routed, Namespace, Namespace]:
    """left -- node -- right on one segment; the node passes everything on."""
    segment = lab.segment("lan")
    spaces = {name: lab.namespace(name) for name in ("node", "left", "right")}
    for name, four, six in (("node", NODE, NODE6), ("left", LEFT, LEFT6), ("right", RIGHT, RIGHT6)):
        segment.attach(spaces[name], "eth0", f"{four}/24", f"{six}/64")
    routed = Routed(spaces["node"])
    accept = [{"action": "Accept"}]
    routed.put(
        resource(
            "Node", "node", {"bgp": {"ipv4Address": f"{NODE}/24", "ipv6Address": f"{NODE6}/64", "asNumber": 65001}}
        ),
        resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False, "asNumber": 65001}),
        resource("BGPFilter", "all", {"importV4": accept, "exportV4": accept, "importV6": accept, "exportV6": accept}),
    )
    return routed, spaces["left"], spaces["right"]


def peer(name: str, address: str, asn: int, **spec: object) -> dict[str, object]:
    return resource("BGPPeer", name, {"node": "node", "peerIP": address, "asNumber": asn, "filters": ["all"], **spec})


def bird(namespace: Namespace, address: str, asn: int, node_as: int, *, says: str = "", extra: str = "") -> Bird:
    """A BIRD that says `says` of its one network, or has none."""
    export = f"export filter {{ {says} accept; }};" if says else "export none;"
    network = f"protocol static {{ ipv4; route {NET} blackhole; }}\n" if says else ""
    return Bird(
        namespace,
        f"router id {address};\nprotocol device {{}}\n{network}"
        f"protocol bgp node {{ local {address} as {asn}; neighbor {NODE} as {node_as}; {extra}\n"
        f"  connect delay time 1; connect retry time 2; error wait time 1, 2; ipv4 {{ import all; {export} }}; }}\n",
    )


SAYS = (
    "bgp_origin = ORIGIN_EGP; bgp_med = 77; bgp_community.add((65002, 5)); bgp_community.add((65535, 0));"
    "bgp_large_community.add((65002, 6, 7)); bgp_ext_community.add((rt, 65002, 8)); bgp_path.prepend(4200000001);"
)


def test_external_to_external_as_bird_hears_it(chain: tuple[Routed, Namespace, Namespace]) -> None:
    routed, left, right = chain
    routed.put(peer("left", LEFT, 65002), peer("right", RIGHT, 65003))
    first, last = bird(left, LEFT, 65002, 65001, says=SAYS), bird(right, RIGHT, 65003, 65001)
    first.start()
    last.start()
    routed.start()
    text = wait_for(lambda: last.routes().get(NET), SOON, "the last router has the route", state=routed.sessions)
    heard = dict(re.findall(r"BGP\.(\w+): (.*)", text))
    assert heard["origin"] == "EGP"
    assert heard["as_path"] == "65001 65002 4200000001"
    assert heard["community"] == "(65002,5) (65535,0)"
    assert heard["large_community"] == "(65002, 6, 7)"
    assert heard["ext_community"] == "(rt, 65002, 8)"
    assert "med" not in heard, "the MED of one neighbour AS is not told to another (RFC 4271 5.1.4)"
    assert heard["next_hop"] in (NODE, LEFT)


def test_external_to_internal_as_frr_hears_it(chain: tuple[Routed, Namespace, Namespace]) -> None:
    routed, left, right = chain
    routed.put(peer("left", LEFT, 65002), peer("right", RIGHT, 65001, nextHopMode="Self"))
    first = bird(left, LEFT, 65002, 65001, says=SAYS)
    last = Frr(
        right,
        f"router bgp 65001\n bgp router-id {RIGHT}\n neighbor {NODE} remote-as 65001\n neighbor {NODE} timers connect 1\n",
    )
    first.start()
    last.start()
    routed.start()
    (path,) = wait_for(lambda: last.route(NET), SOON, "the last router has the route", state=routed.sessions)
    assert path["origin"] == "EGP"
    assert path["aspath"]["string"] == "65002 4200000001"
    assert path["metric"] == 77, "the MED goes on inside the AS"
    assert path["locPrf"] == 100
    assert (
        path["community"]["string"] == "65002:5 65535:0" or "graceful-shutdown" in path["community"]["string"].lower()
    )
    assert path["largeCommunity"]["string"] == "65002:6:7"
    assert path["extendedCommunity"]["string"] == "RT:65002:8"
    assert [hop["ip"] for hop in path["nexthops"]] == [NODE]


def test_well_known_communities_stop_a_route(chain: tuple[Routed, Namespace, Namespace]) -> None:
    """NO_EXPORT stays inside the AS, NO_ADVERTISE here (RFC 1997)."""
    routed, left, right = chain
    routed.put(peer("left", LEFT, 65002), peer("right", RIGHT, 65003))
    routed.start()
    with ScriptedPeer(left, LEFT, NODE, asn=65002) as one, ScriptedPeer(right, RIGHT, NODE, asn=65003) as other:
        one.establish()
        other.establish()
        common = origin() + as_path(65002) + next_hop(LEFT)
        one.send(
            update(common + communities("65535:65281"), nlri("198.51.100.0/24")),
            update(common + communities("65535:65282"), nlri("198.51.101.0/24")),
            update(common, nlri(NET)),
        )
        heard = other.updates_until(NET)
        assert [prefix for each in heard for prefix in each.announced] == [NET]
        for prefix in ("198.51.100.0/24", "198.51.101.0/24"):
            row = routed.route(prefix)
            assert row["candidates"][0]["best"]
            assert any(
                "BGPPeer right" in why["peer"] or RIGHT.replace(".", "_") in why["peer"]
                for why in row["notAdvertisedTo"]
            )


def test_unknown_attributes_pass_with_the_partial_bit_or_stop(chain: tuple[Routed, Namespace, Namespace]) -> None:
    routed, left, right = chain
    routed.put(peer("left", LEFT, 65002), peer("right", RIGHT, 65003))
    routed.start()
    with ScriptedPeer(left, LEFT, NODE, asn=65002) as one, ScriptedPeer(right, RIGHT, NODE, asn=65003) as other:
        one.establish()
        other.establish()
        value = bytes(range(256)) + b"more than 255 octets"
        unknown = attribute(0xC0, 200, value) + attribute(0x80, 201, b"not transitive")
        one.send(update(origin() + as_path(65002) + next_hop(LEFT) + med(3) + unknown, nlri(NET)))
        (heard,) = other.updates_until(NET)
        assert heard.attributes[200] == (0xF0, value), "optional, transitive, partial, extended length"
        assert 201 not in heard.attributes
        assert sorted(heard.attributes) == [1, 2, 3, 200]
        assert heard.attributes[2][1] == struct.pack(">BBII", 2, 2, 65001, 65002)


def test_a_neighbour_with_two_octet_as_numbers(chain: tuple[Routed, Namespace, Namespace]) -> None:
    """RFC 6793, both ways: what the old speaker cannot say goes through AS4_PATH and comes out whole behind it."""
    routed, left, right = chain
    routed.put(peer("left", LEFT, 65002), peer("right", RIGHT, 65003))
    routed.start()
    with ScriptedPeer(left, LEFT, NODE, asn=65002) as one, ScriptedPeer(right, RIGHT, NODE, asn=65003) as other:
        one.establish()
        other.establish(capabilities=multiprotocol())  # without four-octet AS numbers
        one.send(update(origin() + as_path(65002, 4200000001, 70000, 65010) + next_hop(LEFT), nlri(NET)))
        (heard,) = other.updates_until(NET)
        assert heard.attributes[2] == (0x40, struct.pack(">BB5H", 2, 5, 65001, 65002, 23456, 23456, 65010))
        assert heard.attributes[17] == (0xC0, struct.pack(">BB5I", 2, 5, 65001, 65002, 4200000001, 70000, 65010))
        other.send(
            update(
                origin()
                + attribute(0x40, 2, struct.pack(">BB3H", 2, 3, 65003, 23456, 65020))
                + next_hop(RIGHT)
                + attribute(0xC0, 17, struct.pack(">BB2I", 2, 2, 4200000002, 65020)),
                nlri("198.51.100.0/24"),
            )
        )
        back = one.updates_until("198.51.100.0/24")[-1]
        assert back.attributes[2] == (0x40, struct.pack(">BB4I", 2, 4, 65001, 65003, 4200000002, 65020))
        assert 17 not in back.attributes


def test_ipv6_next_hops_with_and_without_link_local(chain: tuple[Routed, Namespace, Namespace]) -> None:
    """RFC 2545: a link-local next hop may stand beside the global one; we pass on our own global one."""
    routed, left, right = chain
    routed.put(peer("left", LEFT6, 65002), peer("right", RIGHT6, 65003))
    routed.start()
    with ScriptedPeer(left, LEFT6, NODE6, asn=65002) as one, ScriptedPeer(right, RIGHT6, NODE6, asn=65003) as other:
        one.establish()
        other.establish()
        one.send(update(mp_reach(f"{LEFT6} fe80::2", NET6) + origin() + as_path(65002)))
        (heard,) = other.updates_until(NET6)
        assert heard.announced == [NET6]
        assert heard.next_hop.split()[0] in (NODE6, LEFT6)
        assert heard.attributes[2][1] == struct.pack(">BBII", 2, 2, 65001, 65002)
        wait_for(lambda: NET6 in routed.kernel_routes(ipv6=True), SOON, "the kernel has it", state=routed.kernel_routes)
        assert "dev eth0" in routed.kernel_routes(ipv6=True)[NET6]


def test_reflection_as_the_clients_hear_it(chain: tuple[Routed, Namespace, Namespace]) -> None:
    """RFC 4456: ORIGINATOR_ID and CLUSTER_LIST are added, all else stays, the next hop too."""
    routed, left, right = chain
    routed.put(
        resource(
            "Node",
            "node",
            {"bgp": {"ipv4Address": f"{NODE}/24", "asNumber": 65001, "routeReflectorClusterID": "224.0.0.9"}},
        ),
        peer("left", LEFT, 65001),
        peer("right", RIGHT, 65001),
    )
    routed.start()
    with ScriptedPeer(left, LEFT, NODE, asn=65001) as one, ScriptedPeer(right, RIGHT, NODE, asn=65001) as other:
        one.establish()
        other.establish()
        said = origin() + as_path(65020) + next_hop(LEFT) + med(5) + local_pref(222) + communities("65001:1")
        one.send(update(said, nlri(NET)))
        (heard,) = other.updates_until(NET)
        assert {code: value for code, (_, value) in heard.attributes.items()} == {
            1: b"\0",
            2: struct.pack(">BBI", 2, 1, 65020),
            3: bytes((10, 0, 0, 2)),
            4: struct.pack(">I", 5),
            5: struct.pack(">I", 222),
            8: struct.pack(">HH", 65001, 1),
            9: bytes((10, 0, 0, 2)),
            10: bytes((224, 0, 0, 9)),
        }
        # our own cluster id in the list: a loop, and never used
        looped = attribute(0x80, 9, bytes((10, 9, 9, 9))) + attribute(0x80, 10, bytes((224, 0, 0, 9)))
        one.send(update(said + looped, nlri("198.51.100.0/24")), update(said, nlri("198.51.101.0/24")))
        assert [prefix for each in other.updates_until("198.51.101.0/24") for prefix in each.announced] == [
            "198.51.101.0/24"
        ]
        (refused,) = routed.route("198.51.100.0/24")["candidates"]
        assert not refused["best"] and "luster" in refused["reason"], refused["reason"]


def test_reflection_between_bird_and_frr(chain: tuple[Routed, Namespace, Namespace]) -> None:
    routed, left, right = chain
    routed.put(
        resource(
            "Node",
            "node",
            {"bgp": {"ipv4Address": f"{NODE}/24", "asNumber": 65001, "routeReflectorClusterID": "224.0.0.9"}},
        ),
        peer("left", LEFT, 65001),
        peer("right", RIGHT, 65001),
    )
    first = bird(left, LEFT, 65001, 65001, says="bgp_local_pref = 140; bgp_med = 9; bgp_community.add((65001, 3));")
    last = Frr(
        right,
        f"router bgp 65001\n bgp router-id {RIGHT}\n no bgp network import-check\n neighbor {NODE} remote-as 65001\n"
        f" neighbor {NODE} timers connect 1\n"
        " address-family ipv4 unicast\n  network 198.51.100.0/24\n exit-address-family\n",
    )
    first.start()
    last.start()
    routed.start()
    (path,) = wait_for(lambda: last.route(NET), SOON, "FRR has BIRD's route", state=routed.sessions)
    assert (path["originatorId"], path["clusterList"]["list"]) == (LEFT, ["224.0.0.9"])
    assert (path["locPrf"], path["metric"], path["community"]["string"]) == (140, 9, "65001:3")
    assert path["nexthops"][0]["ip"] == LEFT
    text = wait_for(lambda: first.routes().get("198.51.100.0/24"), SOON, "BIRD has FRR's route", state=routed.sessions)
    heard = dict(re.findall(r"BGP\.(\w+): (.*)", text))
    assert (heard["originator_id"], heard["cluster_list"]) == (RIGHT, "224.0.0.9")
    assert heard["next_hop"] == RIGHT
    assert json.loads(routed.routes()[NET])["candidates"][0]["asPath"] == ""


def test_four_octet_numbers_in_the_open(chain: tuple[Routed, Namespace, Namespace]) -> None:
    """AS_TRANS in the two-octet field, the whole number in the capability (RFC 6793 4.2.3)."""
    routed, left, _ = chain
    routed.put(
        resource("Node", "node", {"bgp": {"ipv4Address": f"{NODE}/24", "asNumber": 4200000009}}),
        resource("BGPConfiguration", "default", {"nodeToNodeMeshEnabled": False, "asNumber": 4200000009}),
        peer("left", LEFT, 4200000010),
    )
    routed.start()
    with ScriptedPeer(left, LEFT, NODE, asn=4200000010) as one:
        body = one.establish()
    assert struct.unpack_from(">BH", body) == (4, 23456)
    assert four_octet_as(4200000009) in body
    assert multiprotocol() in body
