"""Why a packet passes this node's policy or does not: what was computed, and what the kernel has of it.

The answer to the control socket's request `policy` (source, destination, protocol, port: a packet in numbers; the tunnel's
device it passes between nodes, and the source it is translated to on its way to another). Which interface it leaves by is
asked of the kernel, which routes it; by which one it comes in from elsewhere nobody can know, and the way back is taken for
it. A judge walks the program that was given to the kernel; the chains it went through are then read back with their
counters, and the sets they name. What is not as it was made is named: a chain with other rules (they are told by their
comments, which are the policies'), a set with other members, an interface without its way to a chain, or with
one to another.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

from routed.control.protocol import Request
from routed.core.core import Core
from routed.core.programming import TUNNEL_DEVICES
from routed.daemon.policy import PolicyKeeper
from routed.dataplane.firewall import Firewall
from routed.dataplane.firewall_layout import OWN_SETS
from routed.desired import Gateway
from routed.desired_policy import Icmp
from routed.errors import ControlError, KernelError
from routed.net.addresses import format_address, is_link_local, parse_address
from routed.net.prefixes import covers, make_prefix
from routed.netlink.nft_expressions import Verdict, same
from routed.netlink.nftables import ElementFound, RuleFound
from routed.netlink.routes import Flow
from routed.policy.judge import FirewallModel, Packet, Step, begins_nothing, described
from routed.policy.verdicts import SOURCE_PORT, UPLINK

Row = dict[str, object]

#: Elements of one set that are named at most.
_SHOWN = 5
_VERDICTS = frozenset(Verdict)


class Explanations:
    """See the module's docstring."""

    def __init__(
        self, core: Core, keeper: PolicyKeeper, node_name: str, way_of: Callable[[Flow], Gateway | None]
    ) -> None:
        self._core = core
        self._keeper = keeper
        self._node_name = node_name
        self._way_of = way_of

    async def answer(self, request: Request) -> Row:
        """Raises ControlError where the request is no packet."""
        packet, ways_in_words = self._packet(request)
        firewall = self._keeper.firewall
        model = FirewallModel()
        model.apply(firewall.program)
        judgement = model.judge(packet)
        asked = list(dict.fromkeys(chain for step in judgement.steps for chain in step.asked))
        ways = {name for step in judgement.steps for name in firewall.dispatch_maps(step.place, step.direction)}
        sets = sorted({name for chain in asked for name in firewall.sets_of(chain)} | ways)
        found, elements = await self._keeper.kernel.look(sets)
        chains: list[Row] = []
        differences = [
            *_base(firewall, found),
            *(each for name in sets for each in _set(firewall, name, elements[name])),
            *_walks(firewall, judgement.steps, found),
        ]
        deciding = {step.chain for step in judgement.steps}
        for name in asked:
            chain, expected = firewall.rules_of(name)
            rules = [rule for rule in found if rule.chain == chain]
            differences += _chain(chain, expected, rules)
            if name in deciding:
                chains.append(
                    {
                        "chain": chain,
                        "rules": [
                            {"rule": rule.comment, "packets": rule.packets, "bytes": rule.octets} for rule in rules
                        ],
                    }
                )
        return {
            "node": self._node_name,
            "source": format_address(packet.source),
            "destination": format_address(packet.destination),
            "incoming": packet.incoming,
            "outgoing": packet.outgoing,
            **ways_in_words,
            "verdict": "allow" if judgement.admitted else "deny",
            "reason": judgement.reason,
            "steps": [described(step) for step in judgement.steps],
            "chains": chains,
            "differences": differences,
        }

    def _packet(self, request: Request) -> tuple[Packet, Row]:
        """The packet, and why it passes those interfaces. Raises ControlError."""
        try:
            source, destination = (parse_address(request.text(name) or "") for name in ("source", "destination"))
            protocol, port = (int(request.text(name) or "0") for name in ("protocol", "port"))
            translated = parse_address(request.text("translated") or request.text("source") or "")
            source_port = int(request.text("sourcePort") or SOURCE_PORT)
            kind, code = (int(request.text(name) or "0") for name in ("icmpType", "icmpCode"))
        except ValueError:
            raise ControlError("source and destination must be addresses, protocol and port numbers") from None
        if not len(source) == len(destination) == len(translated):
            raise ControlError("source and destination must be of one family")
        if not (0 <= protocol < 256 and 0 <= port < 65536 and 0 <= source_port < 65536):
            raise ControlError("protocol must be below 256 and ports below 65536")
        if not (0 <= kind < 256 and 0 <= code < 256):
            raise ControlError("icmpType and icmpCode must be below 256")
        icmp = Icmp(kind, code) if request.text("icmpType") else None
        tunnel = request.text("tunnel") or ""
        if tunnel and tunnel not in TUNNEL_DEVICES:
            raise ControlError(f"tunnel must be one of {', '.join(sorted(TUNNEL_DEVICES))}")
        if not self._is_here(source):
            source = translated
        incoming, why_in = self._incoming(source, destination, tunnel)
        flow = Flow(destination, source, self._index_of(incoming), protocol, source_port, port)
        outgoing, why_out = self._outgoing(flow, tunnel)
        packet = Packet(
            source,
            destination,
            protocol,
            source_port,
            port,
            icmp,
            incoming=incoming,
            outgoing=outgoing,
            invalid=begins_nothing(protocol, icmp),
        )
        return packet, {"incomingBy": why_in, "outgoingBy": why_out}

    def _held(self) -> list[tuple[str, bytes, int]]:
        return [(name.name, *each) for name in self._core.interfaces.values() for each in name.addresses]

    def _index_of(self, name: str) -> int:
        return next((index for index, each in self._core.interfaces.items() if each.name == name), 0)

    def _is_here(self, address: bytes) -> bool:
        """Whether it is a pod's of this node, or its own."""
        return bool(self._keeper.engine.interface_of(address)) or any(address == own for _, own, _ in self._held())

    def _own(self, address: bytes) -> tuple[str, str] | None:
        """The interface of who is here, empty for the node itself, and why; None for who is not."""
        if not self._is_here(address):
            return None
        interface = self._keeper.engine.interface_of(address)
        return interface, "the pod's own" if interface else "the node itself"

    def _incoming(self, source: bytes, destination: bytes, tunnel: str) -> tuple[str, str]:
        own = self._own(source)
        if own is not None:
            return own
        if tunnel:
            return tunnel, "the tunnel of its pool"
        # a pod's address stands for nothing the node sends, so the kernel would not answer for it
        back = Flow(source, b"" if self._keeper.engine.interface_of(destination) else destination)
        return self._routed([back], "the kernel's way back to it") or self._guessed(source)

    def _outgoing(self, flow: Flow, tunnel: str) -> tuple[str, str]:
        own = self._own(flow.destination)
        if own is not None:
            return own
        # a bridge's port is not what the kernel sees a packet come in by; who sends may then only be left out
        plain = Flow(flow.destination, b"", 0, flow.protocol, flow.source_port, flow.port)
        said = self._routed([flow, plain], "as the kernel routes it")
        if said is not None:
            return said
        return (tunnel, "the tunnel of its pool") if tunnel else self._guessed(flow.destination)

    def _routed(self, flows: Iterable[Flow], why: str) -> tuple[str, str] | None:
        """The interface that the first of these leads to which the kernel has an answer for, and in words."""
        for flow in flows:
            try:
                gateway = self._way_of(flow)
            except KernelError:
                continue
            interface = self._core.interfaces.get(gateway.interface) if gateway is not None else None
            if gateway is not None and interface is not None:
                via = f", via {format_address(gateway.address)}" if gateway.address else ""
                return interface.name, why + via
        return None

    def _guessed(self, address: bytes) -> tuple[str, str]:
        """Where the kernel has no way: what there would be."""
        held = [each for each in self._held() if each[0] not in TUNNEL_DEVICES]
        wanted = bytes((8 * len(address),)) + address
        near = [name for name, own, bits in held if len(own) == len(address) and covers(make_prefix(own, bits), wanted)]
        if near:
            return near[0], "the network it is on, though the kernel knows no way"
        workloads = self._keeper.firewall.program.host
        prefixes = workloads.workload_prefixes if workloads is not None else ()
        out = {
            name for name, own, _ in held if name != "lo" and not name.startswith(prefixes) and not is_link_local(own)
        }
        if len(out) == 1:
            return out.pop(), "the only one there is, though the kernel knows no way"
        return UPLINK, "nobody knows which: the kernel knows no way"


def _base(firewall: Firewall, found: list[RuleFound]) -> Iterator[str]:
    by_chain: dict[str, list[RuleFound]] = {}
    for rule in found:
        by_chain.setdefault(rule.chain, []).append(rule)
    for chain, expected in firewall.base_rules.items():
        rules = by_chain.get(chain, [])
        if len(rules) != len(expected):
            yield f"chain {chain}: the kernel has {len(rules)} rules, and {len(expected)} were made"
            continue
        for number, (made, rule) in enumerate(zip(expected, rules, strict=True), 1):
            if not same(made, rule.expressions):
                yield f"chain {chain}: the kernel's rule {number} is not the one that was made"


def _walks(firewall: Firewall, steps: Iterable[Step], found: list[RuleFound]) -> Iterator[str]:
    """The chains that lead from an interface's entry to the policies'."""
    for place, direction, interface in dict.fromkeys((step.place, step.direction, step.interface) for step in steps):
        for chain, expected in firewall.walk_of(place, interface, direction).items():
            yield from _chain(chain, expected, [rule for rule in found if rule.chain == chain])


def _chain(chain: str, expected: list[tuple[str, bytes]], rules: list[RuleFound]) -> Iterator[str]:
    comments, wanted = [rule.comment for rule in rules], [comment for comment, _ in expected]
    if comments != wanted:
        yield f"chain {chain}: the kernel has the rules {comments}, and these were made: {wanted}"
        return
    for number, ((comment, made), rule) in enumerate(zip(expected, rules, strict=True), 1):
        if not same(made, rule.expressions):
            yield f"chain {chain}: the kernel's rule {comment or number!r} is not the one that was made"


def _set(firewall: Firewall, name: str, found: set[ElementFound]) -> Iterator[str]:
    expected = firewall.elements_of(name)
    ways = {each.key: each.verdict for each in expected if each.verdict is not None}
    lead_elsewhere = {each for each in found - expected if each.verdict is not None and each.key in ways}
    for each in sorted(lead_elsewhere):
        there, made = _way(each.verdict), _way(ways[each.key])
        yield f"set {name}: the kernel has {_shown(name, each.key)} : {there}, and what was made is {made}"
    missing = {each for each in expected - found if each.key not in {other.key for other in lead_elsewhere}}
    for what, these in (("lacks", missing), ("has, and nobody put there,", found - expected - lead_elsewhere)):
        if these:
            shown = sorted(_shown(name, each.key) + (" (end)" if each.end else "") for each in these)
            more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
            yield f"set {name}: the kernel {what} {', '.join(shown[:_SHOWN])}{more}"


def _way(verdict: tuple[int, str] | None) -> str:
    code, chain = verdict or (0, "")
    word = Verdict(code).name.lower() if code in _VERDICTS else f"verdict {code}"
    return f"{word} {chain}" if chain else word


def _shown(name: str, key: bytes) -> str:
    """An element as people know it: an interface, an address, one at the other, or an address with protocol and port."""
    if name in OWN_SETS:
        return f"{format_address(key[4:])} at the interface of index {int.from_bytes(key[:4], sys.byteorder)}"
    if name.startswith("by_") and not name.endswith(("_4", "_6")):
        return key.rstrip(b"\x00").decode("ascii", "replace")
    if len(key) in (4, 16):
        return format_address(key)
    address, protocol, port = key[:-8], key[-8], int.from_bytes(key[-4:-2], "big")
    return f"{format_address(address)} protocol {protocol} port {port}"
