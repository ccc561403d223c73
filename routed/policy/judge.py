"""A model of the firewall: judges packets by `desired_policy` alone, and says which rule decided and what came before it.

The second opinion on `dataplane.firewall`: the same programs run here and in a kernel, and must agree on every packet.
Also what explains verdicts to people. Written for being read, not for speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace

from routed.desired_policy import (
    Action,
    Chain,
    EndpointPolicy,
    Failsafe,
    HostRules,
    Icmp,
    Place,
    PolicyBatch,
    Rule,
    SetKind,
    SetSpec,
    Side,
    TunnelPackets,
    Walk,
)
from routed.net.families import Family
from routed.values import dataclass

_ICMPV6 = 58
_DISCOVERY = (*range(130, 137), 143)
"""ICMPv6 types no host policy asks about, nor connection tracking."""
_FIRST = {1: (8, 13, 15, 17), _ICMPV6: (128, 139, *_DISCOVERY)}
"""ICMP types, by protocol, that connection tracking takes for the first packet of a connection, or leaves alone."""


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection, or a reply."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int = 0
    port: int = 0
    """Destination port."""
    icmp: Icmp | None = None
    incoming: str = ""
    """The interface it comes in by; empty: this node sends it."""
    outgoing: str = ""
    """The interface it leaves by; empty: it is for this node."""
    reply: bool = False
    """Of an established connection, or related to one."""
    invalid: bool = False
    """Of no connection, and no beginning of one."""

    @property
    def family(self) -> Family:
        return Family.of_address(self.source)


@dataclass(frozen=True, slots=True)
class Step:
    """One tier, or the profiles, asked about a packet."""

    place: Place
    direction: str
    """ingress or egress."""
    interface: str
    tier: str
    action: Action
    origin: str
    """The rule that decided, or "end of TIER"."""
    chain: str = ""
    """The chain with that rule; empty where none had one."""
    asked: tuple[str, ...] = ()
    """The chains that could have had one."""


def described(step: Step) -> dict[str, object]:
    """A step for programs."""
    return {
        "place": step.place.value,
        "direction": step.direction,
        "interface": step.interface,
        "tier": step.tier,
        "action": step.action.value,
        "rule": step.origin,
    }


@dataclass(frozen=True, slots=True)
class Judgement:
    admitted: bool
    reason: str
    """The origin of the rule that decided last."""
    steps: tuple[Step, ...] = field(default=(), compare=False)


class FirewallModel:
    """Takes batches as the kernel would, and judges packets."""

    def __init__(self) -> None:
        self.host = HostRules()
        self.sets: dict[str, tuple[SetSpec, set[bytes]]] = {}
        self.chains: dict[str, Chain] = {}
        self.endpoints: dict[tuple[Place, str], EndpointPolicy] = {}
        self._steps: list[Step] = []
        self._at: tuple[Place, str, str] = (Place.WORKLOAD, "", "")

    def apply(self, batch: PolicyBatch) -> None:
        for update in batch.sets:
            if update.gone:
                self.sets.pop(update.spec.name, None)
            else:
                _, members = self.sets.setdefault(update.spec.name, (update.spec, set()))
                members -= update.removed
                members |= update.added
        if batch.host is not None:
            self.host = batch.host
        for chain in batch.chains:
            if chain.chain is None:
                self.chains.pop(chain.name, None)
            else:
                self.chains[chain.name] = chain.chain
        for endpoint in batch.endpoints:
            key = (endpoint.place, endpoint.interface)
            if endpoint.policy is None:
                self.endpoints.pop(key, None)
            else:
                self.endpoints[key] = endpoint.policy

    def judge(self, packet: Packet) -> Judgement:
        """What becomes of a packet; its source is taken as checked (raw_prerouting is not asked here)."""
        self._steps = []
        return replace(self._judge(packet), steps=tuple(self._steps))

    def _judge(self, packet: Packet) -> Judgement:
        reason = "no policy"
        early = False
        for place, direction, interface in self._met(packet):
            self._at = (place, direction, interface)
            if place in (Place.HOST_UNTRACKED, Place.HOST_PRE_DNAT):
                if early:
                    continue
                decision = self._early(place, direction, interface, packet)
                if decision is None:
                    continue
                if not decision.admitted:
                    return decision
                early, reason = True, decision.reason
                continue
            if place is Place.HOST and direction == "ingress" and self._is_strangers(packet):
                return Judgement(False, "tunnel packets of who is no node")
            if place is Place.HOST and direction == "ingress" and self._is_kept_out(interface, packet):
                return Judgement(False, "workload to host")
            if packet.reply or (
                early and (place is Place.HOST or (place, direction) == (Place.HOST_FORWARD, "ingress"))
            ):
                continue
            judged = self._endpoint(place, direction, interface, packet)
            if judged is None:
                continue
            if not judged.admitted:
                return judged
            reason = judged.reason
        return Judgement(True, reason)

    # ---- where a packet is asked

    def _met(self, packet: Packet) -> Iterator[tuple[Place, str, str]]:
        """The places a packet passes, in order."""
        incoming, outgoing = packet.incoming, packet.outgoing
        if incoming:
            yield Place.HOST_UNTRACKED, "ingress", incoming
            yield Place.HOST_PRE_DNAT, "ingress", incoming
        else:
            yield Place.HOST_UNTRACKED, "egress", outgoing
        if incoming and outgoing:
            yield Place.HOST_FORWARD, "ingress", incoming
            if self._is_workload(incoming):
                yield Place.WORKLOAD, "egress", incoming
            if self._is_workload(outgoing):
                yield Place.WORKLOAD, "ingress", outgoing
            yield Place.HOST_FORWARD, "egress", outgoing
        elif incoming:
            if self._is_workload(incoming) and self.host.workload_to_host is Action.PASS and not _is_discovery(packet):
                yield Place.WORKLOAD, "egress", incoming
            yield Place.HOST, "ingress", incoming
        else:
            yield Place.HOST, "egress", outgoing

    def _is_workload(self, interface: str) -> bool:
        return interface.startswith(self.host.workload_prefixes)

    def _endpoint(self, place: Place, direction: str, interface: str, packet: Packet) -> Judgement | None:
        if place is Place.WORKLOAD:
            if self._is_of_none(packet):
                return Judgement(False, "of no connection")
            ports = {4789, *(tunnel.port for tunnel in self.host.tunnels if tunnel.protocol == 17)}
            if direction == "egress" and (packet.protocol == 4 or (packet.protocol == 17 and packet.port in ports)):
                return Judgement(False, "tunnels of workloads")
            policy = self.endpoints.get((place, interface))
            if policy is None:
                return Judgement(False, "unknown workload")
        else:
            if self._is_workload(interface) and place is Place.HOST:
                return None
            if place is Place.HOST and self._is_failsafe(packet, direction):
                return Judgement(True, "failsafe")
            found = self._host_policy(place, interface)
            if found is None:
                return None
            policy = found
        walk = policy.ingress if direction == "ingress" else policy.egress
        if walk is None:
            return None
        if self._is_of_none(packet):
            return Judgement(False, "of no connection")
        judged = self._walk(walk, packet)
        return judged if judged is not None or place is Place.HOST_FORWARD else self._profiles(walk, packet)

    def _early(self, place: Place, direction: str, interface: str, packet: Packet) -> Judgement | None:
        if place is Place.HOST_PRE_DNAT and packet.reply:
            return None
        if self._is_failsafe(packet, direction, replies=place is Place.HOST_UNTRACKED):
            return None
        policy = self._host_policy(place, interface)
        if policy is None:
            return None
        walk = policy.ingress if direction == "ingress" else policy.egress
        if walk is not None and place is Place.HOST_PRE_DNAT and self._is_of_none(packet):
            return Judgement(False, "of no connection")
        return self._walk(walk, packet) if walk is not None else None

    def _is_failsafe(self, packet: Packet, direction: str, *, replies: bool = False) -> bool:
        """No host policy is asked; `replies`: nor where it answers such a packet, as its source port says."""
        inward, outward = self.host.failsafe_in, self.host.failsafe_out
        asked, answered = (inward, outward) if direction == "ingress" else (outward, inward)
        other = packet.source if direction == "ingress" else packet.destination

        def within(failsafe: Failsafe, port: int) -> bool:
            net = failsafe.family is None or (failsafe.family is packet.family and _covers(failsafe.net, other))
            return net and (failsafe.protocol, failsafe.port) == (packet.protocol, port)

        return (
            _is_discovery(packet)
            or any(within(each, packet.port) for each in asked)
            or any(_carries(each, packet) and other in each.ends for each in self.host.tunnels)
            or (replies and any(within(each, packet.source_port) for each in answered))
        )

    def _is_of_none(self, packet: Packet) -> bool:
        return packet.invalid and self.host.drop_invalid

    def _is_strangers(self, packet: Packet) -> bool:
        return not packet.reply and any(
            _carries(each, packet) and packet.source not in each.ends for each in self.host.tunnels
        )

    def _is_kept_out(self, interface: str, packet: Packet) -> bool:
        """Whatever a workload begins with this node, also where policy admitted it before it got here."""
        closed = self.host.workload_to_host is Action.DENY and self._is_workload(interface)
        return closed and not packet.reply and not _is_discovery(packet)

    def _host_policy(self, place: Place, interface: str) -> EndpointPolicy | None:
        own = self.endpoints.get((place, interface))
        if own is not None:
            return own
        workloads_too = place in (Place.HOST_PRE_DNAT, Place.HOST_FORWARD)
        if interface == "lo" or (self._is_workload(interface) and not workloads_too):
            return None
        return self.endpoints.get((place, "*"))

    # ---- what decides there

    def _walk(self, walk: Walk, packet: Packet) -> Judgement | None:
        """None: no tier decided."""
        for tier in walk.tiers:
            action, origin, chain = self._chains(tier.chains, packet)
            if action is None:
                action, origin = tier.end, f"end of {tier.name}"
            self._steps.append(Step(*self._at, tier.name, action, origin, chain, tier.chains))
            if action is not Action.PASS:
                return Judgement(action is Action.ALLOW, origin)
        return None

    def _profiles(self, walk: Walk, packet: Packet) -> Judgement:
        action, origin, chain = self._chains(walk.profiles, packet)
        made = Step(*self._at, "profiles", action or Action.DENY, origin or "end of profiles", chain, walk.profiles)
        self._steps.append(made)
        if action is None or action is Action.PASS:
            return Judgement(False, "end of profiles" if action is None else "end of the last tier")
        return Judgement(action is Action.ALLOW, origin)

    def _chains(self, names: tuple[str, ...], packet: Packet) -> tuple[Action | None, str, str]:
        for name in names:
            for rule in self.chains[name].rules:
                if rule.action is not Action.LOG and self._matches(rule, packet):
                    return rule.action, rule.origin, name
        return None, "", ""

    def _matches(self, rule: Rule, packet: Packet) -> bool:
        if rule.family is not None and rule.family is not packet.family:
            return False
        if rule.protocol is not None and rule.protocol != packet.protocol:
            return False
        if rule.not_protocol is not None and rule.not_protocol == packet.protocol:
            return False
        if rule.icmp is not None and not _is_icmp(rule.icmp, packet):
            return False
        if rule.not_icmp is not None and _is_icmp(rule.not_icmp, packet):
            return False
        return self._side(rule.source, packet, packet.source, packet.source_port) and self._side(
            rule.destination, packet, packet.destination, packet.port
        )

    def _side(self, side: Side, packet: Packet, address: bytes, port: int) -> bool:
        def in_ports(ranges: tuple[tuple[int, int], ...], sets: tuple[str, ...]) -> bool:
            return any(low <= port <= high for low, high in ranges) or any(
                self._has(name, packet, address, port) for name in sets
            )

        return (
            (not side.net or _covers(side.net, address))
            and not (side.not_net and _covers(side.not_net, address))
            and all(self._contains(name, address) for name in side.sets)
            and not any(self._contains(name, address) for name in side.not_sets)
            and (not (side.ports or side.port_sets) or in_ports(side.ports, side.port_sets))
            and not in_ports(side.not_ports, side.not_port_sets)
        )

    def _has(self, name: str, packet: Packet, address: bytes, port: int) -> bool:
        spec, members = self.sets[name]
        number = port.to_bytes(2, "big")
        if spec.kind is SetKind.RANGES:
            return any(member[:2] <= number <= member[2:] for member in members)
        return address + bytes([packet.protocol]) + number in members

    def _contains(self, name: str, address: bytes) -> bool:
        spec, members = self.sets[name]
        if spec.kind is SetKind.HOSTS:
            return address in members
        return any(_covers(prefix, address) for prefix in members)


def begins_nothing(protocol: int, icmp: Icmp | None) -> bool:
    """Whether it is ICMP that answers something, or is about another packet: alone it is of no connection."""
    return protocol in _FIRST and icmp is not None and icmp.type not in _FIRST[protocol]


def _is_discovery(packet: Packet) -> bool:
    return packet.protocol == _ICMPV6 and packet.icmp is not None and packet.icmp.type in _DISCOVERY


def _is_icmp(icmp: Icmp, packet: Packet) -> bool:
    if packet.icmp is None:
        return False
    return packet.icmp == icmp or replace(packet.icmp, code=None) == icmp


def _covers(prefix: bytes, address: bytes) -> bool:
    bits = prefix[0]
    width = 8 * len(address)
    wanted = int.from_bytes(prefix[1:].ljust(len(address), b"\x00"), "big")
    return (int.from_bytes(address, "big") ^ wanted) >> (width - bits) == 0 if bits else True


def _carries(tunnel: TunnelPackets, packet: Packet) -> bool:
    return (tunnel.family, tunnel.protocol) == (packet.family, packet.protocol) and tunnel.port in (0, packet.port)
