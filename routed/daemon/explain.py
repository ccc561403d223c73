"""Why a packet passes this node's policy or does not: what was computed, and what the kernel has of it.

The answer to the control socket's request `policy` (source, destination, protocol, port: a packet in numbers; the tunnel's
device it passes between nodes, and the source it is translated to on its way to another). A judge
walks the program that was given to the kernel; the chains it went through are then read back with their counters, and the
sets they name. What is not as it was made is named: a chain with other rules (they are told by their comments, which are
the policies'), a set with other members, an interface without its way to a chain, or with
one to another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from routed.control.protocol import Request
from routed.core.core import Core
from routed.core.programming import TUNNEL_DEVICES
from routed.daemon.policy import PolicyKeeper
from routed.dataplane.firewall import Firewall
from routed.dataplane.firewall_layout import OWN_SETS
from routed.desired_policy import Icmp
from routed.errors import ControlError
from routed.net.addresses import format_address, is_link_local, parse_address
from routed.net.prefixes import covers, make_prefix
from routed.netlink.nft_expressions import Verdict, same
from routed.netlink.nftables import ElementFound, RuleFound
from routed.policy.judge import FirewallModel, Packet, Step, begins_nothing, described
from routed.policy.verdicts import SOURCE_PORT, UPLINK

Row = dict[str, object]

#: Elements of one set that are named at most.
_SHOWN = 5
_VERDICTS = frozenset(Verdict)


class Explanations:
    """See the module's docstring."""

    def __init__(self, core: Core, keeper: PolicyKeeper, node_name: str) -> None:
        self._core = core
        self._keeper = keeper
        self._node_name = node_name

    async def answer(self, request: Request) -> Row:
        """Raises ControlError where the request is no packet."""
        packet = self._packet(request)
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
            "verdict": "allow" if judgement.admitted else "deny",
            "reason": judgement.reason,
            "steps": [described(step) for step in judgement.steps],
            "chains": chains,
            "differences": differences,
        }

    def _packet(self, request: Request) -> Packet:
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
        incoming, outgoing = self._interface(source, tunnel), self._interface(destination, tunnel)
        return Packet(
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

    def _held(self) -> list[tuple[str, bytes, int]]:
        return [(name.name, *each) for name in self._core.interfaces.values() for each in name.addresses]

    def _is_here(self, address: bytes) -> bool:
        """Whether it is a pod's of this node, or its own."""
        return bool(self._keeper.engine.interface_of(address)) or any(address == own for _, own, _ in self._held())

    def _interface(self, address: bytes, tunnel: str) -> str:
        """Where packets of or to an address pass this node: a pod's interface, its own (empty), or the way out: a tunnel's,
        where there is one."""
        if self._is_here(address):
            return self._keeper.engine.interface_of(address)
        if tunnel:
            return tunnel
        held = [each for each in self._held() if each[0] not in TUNNEL_DEVICES]
        wanted = bytes((8 * len(address),)) + address
        near = [name for name, own, bits in held if len(own) == len(address) and covers(make_prefix(own, bits), wanted)]
        if near:
            return near[0]
        workloads = self._keeper.firewall.program.host
        prefixes = workloads.workload_prefixes if workloads is not None else ()
        out = {
            name for name, own, _ in held if name != "lo" and not name.startswith(prefixes) and not is_link_local(own)
        }
        return out.pop() if len(out) == 1 else UPLINK


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
