"""The rules of base and dispatch chains, which lead packets to the walks of their endpoints: `firewall_layout` says which.

A workload's packet has a source that is its own, or is reached by the interface it came by, or one of
`EndpointPolicy.sources` where `HostRules.source_spoofing` lets it (`spoofed`); at a bridge only its own. What has a source
that is local to the link, or none yet, is no spoofing. Its own are found in a set, since every packet is asked that, and
asking the kernel's routes takes longer, for IPv6 several times as long (`unsure`). A packet of a connection that is there
is looked up in that set and compared in `forward`, and no more.

Invariants: pure, made from the mirror alone. Chains that nothing is asked in are empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from routed.dataplane import firewall_layout as layout
from routed.dataplane import firewall_words as words
from routed.dataplane.firewall_mirror import Mirror
from routed.desired_policy import Action, Place
from routed.net.families import Family
from routed.netlink import nft_expressions as nft
from routed.netlink.nft_expressions import Base, CtState, Meta, Verdict

_UDP, _IPIP = 17, 4
_VXLAN_PORT = 4789


class BaseRules:
    """See the module's docstring."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self.names: dict[tuple[str, bytes], str] = {}
        """What people call those of the last `made` that drop, by chain."""

    def made(self) -> dict[str, tuple[bytes, ...]]:
        """The rules by chain; those of places no endpoint is at are empty."""
        mirror = self._mirror
        self.names = {}
        used = {(place, direction) for (place, direction) in layout.DISPATCH if mirror.is_used(place, direction)}
        names, bridges = mirror.workload_names(), mirror.bridges()
        workloads = [words.has_interface(Meta.IIFNAME, name) for name in names]
        to_workloads = [words.has_interface(Meta.OIFNAME, name) for name in names]
        known = words.is_known()

        def asked(place: Place, direction: str) -> list[bytes]:
            if (place, direction) not in used:
                return []
            skips = place is not Place.HOST_UNTRACKED and (place, direction) != (Place.HOST_FORWARD, "egress")
            return [
                (words.lacks_mark(layout.EARLY) if skips else b"")
                + nft.verdict(Verdict.JUMP, layout.DISPATCH[place, direction])
            ]

        # nobody else's mark, and no outer packet's, may pass for one of ours
        unmarked = [words.clear_mark(layout.EARLY)] if any(place is not Place.WORKLOAD for place, _ in used) else []
        rules: dict[str, list[bytes]] = {
            "raw_prerouting": [
                *unmarked,
                # with route_localnet a workload might reach what listens there, which is the node's alone
                *(
                    self._dropped("raw_prerouting", words.to_loopback() + match, "loopback of the node")
                    for match in workloads
                ),
                *(
                    words.lacks_source(layout.own_set(family), family) + nft.verdict(Verdict.JUMP, layout.UNSURE)
                    for family in Family
                ),
                *(
                    words.has_interface(Meta.IIFNAME, f"{bridge}\x00") + nft.verdict(Verdict.JUMP, layout.FROM_BRIDGE)
                    for bridge in bridges
                ),
                *asked(Place.HOST_UNTRACKED, "ingress"),
            ],
            "raw_output": [*unmarked, *asked(Place.HOST_UNTRACKED, "egress")],
            "pre_dnat": [known, *asked(Place.HOST_PRE_DNAT, "ingress")] if mirror.is_used(Place.HOST_PRE_DNAT) else [],
            "input": [],
            "output": [],
            "postrouting": [],
            layout.UNSURE: [match + nft.verdict(Verdict.JUMP, layout.SPOOFED) for match in workloads],
            "forward": [words.is_unknown() + nft.verdict(Verdict.GOTO, layout.FORWARDED)],
            layout.FORWARDED: [
                *asked(Place.HOST_FORWARD, "ingress"),
                *(match + nft.verdict(Verdict.JUMP, "from_workload") for match in workloads),
                *(match + nft.verdict(Verdict.JUMP, "to_workload") for match in to_workloads),
                *asked(Place.HOST_FORWARD, "egress"),
            ],
            layout.NAT: list(self._nat_rules()),
            layout.FROM_BRIDGE: list(self._bridged_rules()) if bridges else [],
            layout.SPOOFED: list(self._source_rules()),
        }
        to_host = mirror.host.workload_to_host
        if mirror.host.tunnels:
            rules["input"] = [known, *self._strangers()]
        if to_host is not Action.ALLOW or mirror.is_used(Place.HOST, "ingress"):
            rules["input"] = rules["input"] or [known]
            for match in workloads:
                rules["input"] += [match + each + nft.verdict(Verdict.RETURN) for each in words.discovery()]
                if to_host is Action.PASS:
                    rules["input"].append(match + nft.verdict(Verdict.JUMP, "from_workload"))
                if to_host is Action.DENY:
                    rules["input"].append(self._dropped("input", match, "workload to host"))
                else:
                    rules["input"].append(match + nft.verdict(Verdict.RETURN))
            rules["input"] += asked(Place.HOST, "ingress")
        if mirror.is_used(Place.HOST, "egress"):
            passed = [match + nft.verdict(Verdict.RETURN) for match in to_workloads]
            (ask,) = asked(Place.HOST, "egress")
            rules["output"] = [known, *passed, words.is_translated() + nft.verdict(Verdict.RETURN), ask]
            rules["postrouting"] = [
                known,
                *passed,
                nft.meta(Meta.IIF) + nft.compare(bytes(4)) + words.is_translated() + ask,
            ]
        for (place, direction), name in layout.DISPATCH.items():
            rules[name] = list(self._dispatch_rules(place, direction, name)) if mirror.is_used(place, direction) else []
        return {chain: tuple(each) for chain, each in rules.items()}

    # ---- inside

    def _source_rules(self) -> Iterator[bytes]:
        """What becomes of a workload's packet whose source is not known to be its own."""
        mirror = self._mirror
        for match in words.local_to_link():
            yield match + nft.verdict(Verdict.RETURN)
        if mirror.host.source_spoofing:
            for interface, sources in sorted(mirror.sources.items()):
                for family, net in sources:
                    named = words.has_interface(Meta.IIFNAME, f"{interface}\x00")
                    yield named + words.in_net(family, net, words.SOURCE) + nft.verdict(Verdict.RETURN)
        yield self._dropped(layout.SPOOFED, nft.fib_source_present() + nft.compare(bytes(4)), "spoofed source")

    def _dispatch_rules(self, place: Place, direction: str, name: str) -> Iterator[bytes]:
        mirror = self._mirror
        by = Meta.IIFNAME if direction == "ingress" else Meta.OIFNAME
        if place is Place.WORKLOAD:
            if mirror.host.drop_invalid:
                yield self._dropped(name, words.in_state(CtState.INVALID), layout.OF_NONE)
            by = Meta.OIFNAME if direction == "ingress" else Meta.IIFNAME
            if direction == "egress":  # a pod must not speak the node's tunnels around its policy
                yield self._dropped(name, words.has_protocol(_IPIP), "tunnels of workloads")
                for port in sorted(
                    {_VXLAN_PORT, *(each.port for each in mirror.host.tunnels if each.protocol == _UDP)}
                ):
                    yield self._dropped(
                        name, words.has_protocol(_UDP) + words.has_port(2, port), "tunnels of workloads"
                    )
            where = words.DESTINATION if direction == "ingress" else words.SOURCE
            for bridge, family in product(mirror.bridges(), Family):
                match = (
                    words.has_interface(by, f"{bridge}\x00") + nft.meta(Meta.NFPROTO) + nft.compare(words.PROTO[family])
                )
                address = nft.payload(Base.NETWORK, *where[family])
                yield match + address + nft.verdict_map(layout.by_address(name, family))
            yield nft.meta(by) + nft.verdict_map(f"by_{name}")
            yield self._dropped(name, b"", "unknown workload")
            return
        if place in layout.FAILSAFE_PLACES:
            yield from self._failsafe_rules(place, direction)
        yield nft.meta(by) + nft.verdict_map(f"by_{name}")
        policy = mirror.endpoints.get((place, layout.WILDCARD))
        target = mirror.target(policy, direction)
        if target is not None:
            for prefix in (*(() if place in layout.OF_WORKLOADS_TOO else mirror.workload_names()), "lo\x00"):
                yield words.has_interface(by, prefix) + nft.verdict(Verdict.RETURN)
            yield nft.verdict(*target)

    def _failsafe_rules(self, place: Place, direction: str) -> Iterator[bytes]:
        mirror = self._mirror
        leave = nft.verdict(Verdict.RETURN)
        for each in words.discovery():
            yield each + leave
        inward, outward = mirror.host.failsafe_in, mirror.host.failsafe_out
        asked, answered = (inward, outward) if direction == "ingress" else (outward, inward)
        other = words.SOURCE if direction == "ingress" else words.DESTINATION
        for failsafe in asked:
            yield words.is_failsafe(failsafe, 2, other) + leave
        for tunnel in mirror.host.tunnels:
            yield words.is_tunnelled(tunnel) + words.with_end(tunnel, other) + leave
        if place is Place.HOST_UNTRACKED:  # nobody knows a reply here but by its source port
            for failsafe in answered:
                yield words.is_failsafe(failsafe, 0, other) + leave

    def _strangers(self) -> Iterator[bytes]:
        """Packets for a tunnel from who is no node: what is in them would pass for a pod's."""
        for tunnel in self._mirror.host.tunnels:
            stranger = words.is_tunnelled(tunnel) + words.with_end(tunnel, words.SOURCE, inverted=True)
            yield self._dropped("input", stranger, "tunnel packets of who is no node")

    def _nat_rules(self) -> Iterator[bytes]:
        for family, pools in sorted(self._mirror.host.nat_pools.items()):
            if not pools:
                continue
            yield (
                nft.meta(Meta.NFPROTO)
                + nft.compare(words.PROTO[family])
                + nft.payload(Base.NETWORK, *words.SOURCE[family])
                + nft.lookup(layout.pool_set("nat", family))
                + nft.payload(Base.NETWORK, *words.DESTINATION[family])
                + nft.lookup(layout.pool_set("all", family), inverted=True)
                + nft.counter()
                + nft.masquerade(fully_random=True)
            )

    def _bridged_rules(self) -> Iterator[bytes]:
        """What comes by a bridge has the addresses of one workload; its port lets only its own MAC address in."""
        for family in Family:
            source = nft.payload(Base.LINK, 6, 6, nft.concat_register(0))
            source += nft.payload(Base.NETWORK, *words.SOURCE[family], nft.concat_register(2))
            known = nft.lookup(layout.bridged_set(family), register=nft.concat_register(0)) + nft.verdict(
                Verdict.RETURN
            )
            yield nft.meta(Meta.NFPROTO) + nft.compare(words.PROTO[family]) + source + known
        for match in words.local_to_link():
            yield match + nft.verdict(Verdict.RETURN)
        yield self._dropped(layout.FROM_BRIDGE, b"", "spoofed source")

    def _dropped(self, chain: str, match: bytes, name: str) -> bytes:
        """A rule of a base or dispatch chain that drops, under a name."""
        made = match + words.denied(self._mirror.host, name)
        self.names[chain, made] = name
        return made
