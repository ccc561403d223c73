"""Every attribute, compared one by one at each step of its way, in both directions, with every make of router.

    source -- tor -- node -- sink        all on one segment, each pair with a session of both families

`source` and `sink` are scripted: one says every attribute there is and the other hears, octet by octet, what came through
the make of router and routed; in between both are asked what they hold. ExaBGP passes nothing on, so it says and hears
itself what `source` does for the others. All that routed says goes by tshark, too.

What FRR does not tell of (unknown attributes) is seen in what it passes on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.peer import (
    AS_TRANS,
    ScriptedPeer,
    attribute,
    mp_reach,
    multiprotocol,
    next_hop,
    nlri,
    packed,
    update,
)
from routed.testing.routers import Bird, ExaBgp, Frr, GoBgp, OpenBgpd, Routed, Router, resource
from routed.testing.told import Told, of_octets
from tests.interop.tors import NODE4, NODE6, NODE_AS, TOR4, TOR6, TOR_AS, Wire
from tests.lab.topology import SOON

SOURCE_AS, SINK_AS = 65003, 65002
CLUSTER, AGGREGATOR, UNKNOWN = "224.0.0.9", "192.0.2.7", bytes((1, 2, 255))

#: What the make of router sets on the way to the node: it would not pass on those of another AS.
MED, LOCAL_PREF = 78, 333

Attributes = dict[int, tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Line:
    """One family of the laboratory."""

    version: int
    node: str
    tor: str
    source: str
    sink: str
    outbound: str
    """What the sink announces; `inbound` is what comes from the source."""
    inbound: str
    aggregator: int
    """One that needs four octets, and one that does not. 0 is none at all."""


FOUR = Line(4, NODE4, TOR4, "10.0.0.4", "10.0.0.2", "192.0.2.0/24", "198.51.100.0/24", 70000)
SIX = Line(6, NODE6, TOR6, "fd00::4", "fd00::2", "2001:db8:2::/48", "2001:db8:4::/48", 65010)


# ---- what is said of a route, as octets and as it should arrive


def paths(asn: int, aggregator: int, *ahead: int, old: bool = False) -> Attributes:
    """AS_PATH and AGGREGATOR; where the session has no four-octet numbers in two octets, with their AS4 forms (RFC 6793)."""
    numbers, by = (*ahead, asn, 4200000001), packed(AGGREGATOR)

    def segments(form: str, say: Callable[[int], int]) -> bytes:
        sequence = struct.pack(f">BB{len(numbers)}{form}", 2, len(numbers), *map(say, numbers))
        return sequence + struct.pack(f">BB2{form}", 1, 2, say(65010), say(70000))

    def short(number: int) -> int:
        return number if number < 65536 else AS_TRANS

    said = {2: (0x40, segments("H" if old else "I", short if old else int))}
    if old:
        said[17] = (0xC0, segments("I", int))
    if aggregator:
        said[7] = (0xC0, struct.pack(">H4s" if old else ">I4s", short(aggregator) if old else aggregator, by))
    if old and aggregator > 65535:
        said[18] = (0xC0, struct.pack(">I4s", aggregator, by))
    return said


def announce(peer: ScriptedPeer, prefix: str, asn: int, aggregator: int, *, old: bool, local_pref: int | None) -> None:
    said: Attributes = {
        1: (0x40, b"\1"),
        4: (0x80, struct.pack(">I", 77)),
        6: (0x40, b""),
        8: (0xC0, struct.pack(">4H", asn, 5, asn, 6)),
        16: (0xC0, struct.pack(">HHI", 2, asn, 8)),
        32: (0xC0, struct.pack(">III", asn, 6, 7)),
        200: (0xC0, UNKNOWN),
        **paths(asn, aggregator, old=old),
    }
    if local_pref is not None:
        said[5] = (0x40, struct.pack(">I", local_pref))
    octets = b"".join(attribute(flags, code, value) for code, (flags, value) in sorted(said.items()))
    if ":" in prefix:
        peer.send(update(mp_reach(peer.local, prefix) + octets))
    else:
        peer.send(update(octets + next_hop(peer.local), nlri(prefix)))


def arrives(asn: int, line: Line, hop: str, *ahead: int, tail: str = "4200000001 {65010 70000}") -> Told:
    """What should be told of it once these ASes have put themselves in front."""
    return Told(
        origin="egp",
        as_path=" ".join(map(str, (*ahead, asn, tail))),
        next_hop=hop,
        atomic_aggregate=True,
        aggregator=f"{line.aggregator} {AGGREGATOR}" if line.aggregator else "",
        communities=(f"{asn}:5", f"{asn}:6"),
        large_communities=(f"{asn}:6:7",),
        extended_communities=(f"rt:{asn}:8",),
        unknown={200: UNKNOWN.hex()},
    )


# ---- the makes of routers: each has a passive session with the node and one with the source


def bird(namespace: Namespace, asn: int, lines: tuple[Line, ...], *, old: bool) -> Bird:
    config = f"router id {TOR4};\nprotocol device {{}}\n"
    said = f"export filter {{ bgp_med = {MED}; bgp_local_pref = {LOCAL_PREF}; accept; }};"
    for line in lines:
        for peer, peer_as, export, extra in (
            (line.node, NODE_AS, said, "enable as4 off;" if old else ""),
            (line.source, SOURCE_AS, "export all;", ""),
        ):
            config += (
                f"protocol bgp {{ local {line.tor} as {asn}; neighbor {peer} as {peer_as}; passive on; {extra}\n"
                f"  ipv{line.version} {{ import all; {export} }}; }}\n"
            )
    return Bird(namespace, config)


def frr(namespace: Namespace, asn: int, lines: tuple[Line, ...], *, old: bool) -> Frr:
    config = f"router bgp {asn}\n bgp router-id {TOR4}\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n"
    families = ""
    for line in lines:
        for peer, peer_as in ((line.node, NODE_AS), (line.source, SOURCE_AS)):
            config += f" neighbor {peer} remote-as {peer_as}\n neighbor {peer} passive\n"
            config += f" neighbor {peer} advertisement-interval 0\n"
        if old:  # it has no switch for this one capability, only for all
            config += f" neighbor {line.node} dont-capability-negotiate\n"
        families += (
            f" address-family ipv{line.version} unicast\n  neighbor {line.source} activate\n"
            f"  neighbor {line.node} activate\n  neighbor {line.node} route-map said out\n exit-address-family\n"
        )
    said = f"exit\nroute-map said permit 10\n set metric {MED}\n set local-preference {LOCAL_PREF}\nexit\n"
    return Frr(namespace, config + families + said, program_routes=False)


def gobgp(namespace: Namespace, asn: int, lines: tuple[Line, ...], *, old: bool) -> GoBgp:
    assert not old, "GoBGP has no way to leave the capability out"
    config = (
        f'[global.config]\nas = {asn}\nrouter-id = "{TOR4}"\n'
        '[global.apply-policy.config]\nexport-policy-list = ["said"]\ndefault-export-policy = "accept-route"\n'
        '[[policy-definitions]]\nname = "said"\n[[policy-definitions.statements]]\nname = "all"\n'
        '[policy-definitions.statements.actions]\nroute-disposition = "accept-route"\n'
        f'[policy-definitions.statements.actions.bgp-actions]\nset-med = "{MED}"\nset-local-pref = {LOCAL_PREF}\n'
    )
    for line in lines:
        for peer, peer_as in ((line.node, NODE_AS), (line.source, SOURCE_AS)):
            config += (
                f'[[neighbors]]\n[neighbors.config]\nneighbor-address = "{peer}"\npeer-as = {peer_as}\n'
                "[neighbors.transport.config]\npassive-mode = true\n"
                f'[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = "ipv{line.version}-unicast"\n'
            )
    return GoBgp(namespace, config)


def openbgpd(namespace: Namespace, asn: int, lines: tuple[Line, ...], *, old: bool) -> OpenBgpd:
    config = f"AS {asn}\nrouter-id {TOR4}\n"
    for line in lines:
        for peer, peer_as in ((line.node, NODE_AS), (line.source, SOURCE_AS)):
            config += (
                f"neighbor {peer} {{\n remote-as {peer_as}\n local-address {line.tor}\n passive\n"
                f" announce IPv{line.version} unicast\n announce IPv{10 - line.version} none\n"
                + (" announce as-4byte no\n" if old and peer == line.node else "")
                + "}\n"
            )
    config += "allow from any\nallow to any\n"
    return OpenBgpd(
        namespace,
        config + "".join(f"match to {line.node} set {{ metric {MED} localpref {LOCAL_PREF} }}\n" for line in lines),
    )


def exabgp(namespace: Namespace, asn: int, lines: tuple[Line, ...], *, old: bool) -> ExaBgp:
    config = ""
    for line in lines:
        said = (
            f"origin egp as-path [ {asn if asn != NODE_AS else ''} {SOURCE_AS} 4200000001 ] ( 65010 70000 ) med {MED}"
            f" local-preference {LOCAL_PREF} atomic-aggregate aggregator ( {line.aggregator}:{AGGREGATOR} )"
            f" community [ {SOURCE_AS}:5 {SOURCE_AS}:6 ] large-community [ {SOURCE_AS}:6:7 ]"
            f" extended-community [ target:{SOURCE_AS}:8 ] attribute [ 0xc8 0xc0 0x{UNKNOWN.hex()} ]"
        )
        config += (
            f"neighbor {line.node} {{ router-id {TOR4}; local-address {line.tor}; local-as {asn}; peer-as {NODE_AS};\n"
            f"  passive true; listen 179; family {{ ipv{line.version} unicast; }}\n"
            f"  capability {{ asn4 {'disable' if old else 'enable'}; }}\n"
            f"  static {{ route {line.inbound} next-hop {line.tor} {said}; }}\n"
            "  api { processes [ watch ]; neighbor-changes; receive { parsed; update; } } }\n"
        )
    return ExaBgp(namespace, config)


MAKES: dict[str, Callable[..., Router]] = {
    "bird": bird,
    "frr": frr,
    "gobgp": gobgp,
    "openbgpd": openbgpd,
    "exabgp": exabgp,
}

#: external; internal, with the node as reflector between tor and sink; external, without four-octet AS numbers.
CASES = [(make, kind) for make in MAKES for kind in ("ebgp", "ibgp", "as2") if (make, kind) != ("gobgp", "as2")]


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_all_attributes_both_ways(lab: Lab, on_the_wire: Wire, make: str, kind: str) -> None:
    internal, old = kind == "ibgp", kind == "as2"
    # without any capability there is no IPv6 either
    lines = (replace(FOUR, aggregator=0),) if (make, kind) == ("frr", "as2") else (FOUR, SIX)
    segment, spaces = lab.segment("lan"), {}
    for name in ("node", "tor", "source", "sink"):
        spaces[name] = lab.namespace(name)
        segment.attach(spaces[name], "eth0", f"{getattr(FOUR, name)}/24", f"{getattr(SIX, name)}/64")
    on_the_wire(spaces["node"], "eth0", *(line.node for line in lines))
    tor_as, sink_as = (NODE_AS, NODE_AS) if internal else (TOR_AS, SINK_AS)

    routed = Routed(spaces["node"])
    accept = [{"action": "Accept"}]
    own = {"ipv4Address": f"{NODE4}/24", "ipv6Address": f"{NODE6}/64", "asNumber": NODE_AS}
    routed.put(
        resource("Node", "node", {"bgp": own | ({"routeReflectorClusterID": CLUSTER} if internal else {})}),
        resource("BGPFilter", "all", {"importV4": accept, "exportV4": accept, "importV6": accept, "exportV6": accept}),
        *(
            resource(
                "BGPPeer", f"{name}{line.version}", {"node": "node", "peerIP": ip, "asNumber": asn, "filters": ["all"]}
            )
            for line in lines
            for name, ip, asn in (("tor", line.tor, tor_as), ("sink", line.sink, sink_as))
        ),
    )
    tor = MAKES[make](spaces["tor"], tor_as, lines, old=old)
    tor.start()
    routed.start()
    peers: dict[str, ScriptedPeer] = {}
    for line in lines:
        peers[line.sink] = ScriptedPeer(spaces["sink"], line.sink, line.node, asn=sink_as, router_id=FOUR.sink)
        peers[line.sink].establish(capabilities=multiprotocol(line.version == 6) if old else None)
        if make != "exabgp":
            peers[line.source] = ScriptedPeer(
                spaces["source"], line.source, line.tor, asn=SOURCE_AS, router_id=FOUR.source
            )
            peers[line.source].establish()
            announce(peers[line.source], line.inbound, SOURCE_AS, line.aggregator, old=False, local_pref=None)
        preference = 222 if internal else None
        announce(peers[line.sink], line.outbound, SINK_AS, line.aggregator, old=old, local_pref=preference)

    for line in lines:
        inwards, cut = "4200000001 {65010 70000}", "23456 {23456 65010}"
        # FRR takes no AS4_PATH from one that has offered four octets, though it did not; OpenBGPD none beside an
        # AGGREGATOR whose number has two octets
        ignores = make == "frr" or (make == "openbgpd" and line.aggregator < 65536)
        outwards = cut if old and ignores else inwards
        # from the sink through routed to the make of router
        wanted = arrives(SINK_AS, line, line.node, NODE_AS, tail=outwards)
        if internal:
            wanted = replace(
                arrives(SINK_AS, line, line.sink),
                med=77,
                local_pref=222,
                originator_id=FOUR.sink,
                cluster_list=(CLUSTER,),
            )
        elif make in ("bird", "openbgpd"):
            wanted = replace(wanted, local_pref=100)  # which they assume
        heard = wait_for(
            lambda line=line: tor.told(line.outbound), SOON, "the tor has the sink's route", state=lab.report
        )
        assert heard == (replace(wanted, unknown={}) if make == "frr" else wanted)
        if make != "exabgp":  # and to the source
            last = peers[line.source].updates_until(line.outbound)[-1]
            passed = of_octets(last.attributes, "::")
            ahead = () if internal else (NODE_AS,)
            assert replace(passed, med=None) == arrives(SINK_AS, line, "::", tor_as, *ahead, tail=outwards)
            assert last.attributes[200][0] & 0x20, "we do not know it, so it is partial from us on"

        # from the source through the make of router to routed
        third_party = make != "exabgp" and (internal or make != "gobgp")
        hop = line.source if third_party else line.tor
        wanted = replace(
            arrives(SOURCE_AS, line, hop, *(() if internal else (TOR_AS,)), tail=inwards),
            med=MED,
            local_pref=LOCAL_PREF if internal else 100,
        )
        found = wait_for(lambda line=line: routed.told(line.inbound), SOON, "routed has it", state=lab.report)
        assert found == wanted
        # and to the sink
        last = peers[line.sink].updates_until(line.inbound)[-1]
        if old:
            said = paths(SOURCE_AS, line.aggregator, NODE_AS, TOR_AS, old=True)
            # OpenBGPD sets the partial bit of what it makes itself, and it stays
            heard_flags = {code: (flags & ~0x20, value) for code, (flags, value) in last.attributes.items()}
            assert {code: each for code, each in heard_flags.items() if code in (2, 7, 17, 18)} == said
            four = paths(SOURCE_AS, line.aggregator, NODE_AS, TOR_AS)
            last.attributes = {code: each for code, each in last.attributes.items() if code not in said} | four
        if internal:
            wanted = replace(wanted, originator_id=TOR4, cluster_list=(CLUSTER,))
        else:
            wanted = arrives(SOURCE_AS, line, line.node, NODE_AS, TOR_AS)
        assert of_octets(last.attributes, last.next_hop) == wanted
        assert last.attributes[200][0] == 0xE0
    assert routed.problems() == []
