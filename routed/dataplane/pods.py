"""The wires of pods: a veth pair between the node and a pod's network namespace, and what is set on its two ends.

The node's end has Calico's MAC address, the same everywhere, so that the pod's gateways never change: 169.254.1.1, and
the link-local address that follows from the MAC. Both ends know each other as permanent neighbours: nothing is asked on
the wire, so neither proxy ARP nor duplicate address detection is in the way, also on a node without a default route.

Where a pod is attached to a bridge, the node's end is a port of it, and the bridge stands in the place of that end: it has
the MAC address, the neighbours and the routes. A port passes nothing to another port and lets in no frame that does not come
from its pod's own MAC address, so all that pods of one bridge say to each other goes through the node, as it does without a
bridge, and policy is asked about it.

Invariants: this process never enters a namespace. What is inside is done through the netlink socket the plugin opened
there. `attach` either does all or leaves nothing behind. The kernel takes tens of milliseconds to delete a pair, and lets
nobody change or look at links meanwhile: so all but `index_of` and `mtu_of` belongs into threads, any number of them.

Long for one idea: what is made at both ends, what waits until it is so, and what compares it later go through one list.

Not here: the pod's routes on the node (they go with all others, through `routes`), addresses (`ipam`), policy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from routed.dataplane.exchange import Exchange, open_exchange
from routed.dataplane.pod_state import NodeState, look, permanent, read_node, ways
from routed.dataplane.sysctls import ROOT, Sysctls
from routed.dataplane.way import is_at_home
from routed.errors import KernelError
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.net.prefixes import DEFAULT_ROUTE, make_prefix
from routed.netlink.bridge import (
    BridgeLink,
    add_port_address,
    decode_bridge_link,
    guard_port,
    make_bridge,
    set_master,
)
from routed.netlink.links import decode_link, dump_links
from routed.netlink.messages import Message
from routed.netlink.numbers import (
    DEVCONF_ACCEPT_DAD,
    DEVCONF_ACCEPT_RA,
    DEVCONF_DISABLE_IPV6,
    DEVCONF_FORWARDING,
    IPV4_DEVCONF_FORWARDING,
    IPV4_DEVCONF_PROXY_ARP,
    IPV4_DEVCONF_ROUTE_LOCALNET,
    IPV4_DEVCONF_RP_FILTER,
    RT_TABLE_MAIN,
)
from routed.netlink.tunnels import change_link, remove_neighbour
from routed.netlink.veth import (
    Pair,
    SourceRule,
    add_default_route,
    add_host_address,
    add_link_route,
    add_source_rule,
    configure_link,
    decode_pair,
    decode_source_rule,
    delete_group,
    delete_link,
    delete_source_rule,
    dump_rules,
    get_link,
    make_veth,
    set_link_group,
    set_link_up,
    set_named_link_up,
    set_neighbour,
)
from routed.values import dataclass

_SIOCGIFMTU = 0x8921
#: Seconds in which the kernel should have seen that a pair's other end is up, or made routes, and between two looks.
_CARRIER, _LOOK_AGAIN = 5.0, 0.002
#: The index of `lo` in every network namespace.
_LOOPBACK = 1
#: A link with a smaller MTU has no IPv6 (RFC 8200 5).
_IPV6_MTU = 1280

#: The node's end of every pair, as Calico has it.
NODE_MAC = bytes.fromhex("eeeeeeeeeeee")

#: What the daemon calls a node's end: `cali`, and a part of the endpoint's digest.
_NAME = re.compile(r"cali[0-9a-f]{11}")

#: What a pod's default routes lead to: nobody's address, and the link-local address of NODE_MAC (RFC 4291 A).
GATEWAYS = {
    Family.IPV4_UNICAST: bytes((169, 254, 1, 1)),
    Family.IPV6_UNICAST: bytes.fromhex("fe80000000000000eceeeefffeeeeeee"),
}

#: Inside a pod that has IPv6, before its interface exists: addresses are usable at once, nobody else configures it. Of one
#: that has none all of IPv6 is as its runtime made it.
IPV6_POD_SYSCTLS = (
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/lo/disable_ipv6", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
)

#: On the node's end. Strict reverse path filtering refuses IPv4 packets with a source that is not the pod's.
NODE_SYSCTLS = (
    ("ipv4/conf/{}/forwarding", "1"),
    ("ipv4/conf/{}/rp_filter", "1"),
    ("ipv4/conf/{}/route_localnet", "1"),
    ("ipv6/conf/{}/accept_ra", "0"),
)

#: There, where the pod has IPv6, whatever the node says of interfaces that are made later. For one that has none the node's
#: end has no link-local address either, which the kernel would have to make, announce and take away again.
IPV6_SYSCTLS = (
    ("ipv6/conf/{}/forwarding", "1"),
    ("ipv6/conf/{}/accept_dad", "0"),
    ("ipv6/conf/{}/disable_ipv6", "0"),
)

#: Of these, what the kernel tells with a link, by its place there.
_TOLD = {
    "ipv6/conf/{}/forwarding": DEVCONF_FORWARDING,
    "ipv6/conf/{}/accept_ra": DEVCONF_ACCEPT_RA,
    "ipv6/conf/{}/accept_dad": DEVCONF_ACCEPT_DAD,
    "ipv6/conf/{}/disable_ipv6": DEVCONF_DISABLE_IPV6,
}

#: What it also takes in a message: a file is several calls into it, and each waits for a turn.
_BY_MESSAGE = {
    "ipv4/conf/{}/forwarding": IPV4_DEVCONF_FORWARDING,
    "ipv4/conf/{}/rp_filter": IPV4_DEVCONF_RP_FILTER,
    "ipv4/conf/{}/route_localnet": IPV4_DEVCONF_ROUTE_LOCALNET,
    "ipv4/conf/{}/proxy_arp": IPV4_DEVCONF_PROXY_ARP,
}

#: Answering ARP and neighbour solicitations for everybody, for pods that somebody else configures.
PROXY_SYSCTLS = (
    ("ipv4/neigh/{}/proxy_delay", "0"),
    ("ipv4/conf/{}/proxy_arp", "1"),
    ("ipv6/conf/{}/proxy_ndp", "1"),
)

#: Inside a pod at a bridge, before its interface exists. The node sends packets of one pod of the bridge to another by the
#: way they came, and so tells both that there is a shorter one (ICMP redirects), and there is none.
BRIDGED_POD_SYSCTLS = (
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
)

#: On a bridge, beside NODE_SYSCTLS; where the node says the same of all interfaces, it tells of no shorter way.
BRIDGE_SYSCTLS = (("ipv4/conf/{}/send_redirects", "0"),)

#: On the node's end where it is a port: what comes in belongs to the bridge.
PORT_SYSCTLS = (("ipv6/conf/{}/disable_ipv6", "1"),)

#: Routing table of a pod's second interface, less its index, and the place of the rule that leads to it: before `main`.
_TABLES = 1000
_RULE_PRIORITY = 1000

_INTERFACE_NAME = re.compile(r"[A-Za-z0-9_-]{1,15}")


def pod_sysctls(*, ipv6: bool, bridged: bool) -> tuple[tuple[str, str], ...]:
    """What is to be written inside a pod. A kernel without IPv6 (`ipv6.disable=1`) has no such files, and needs none."""
    return (*(IPV6_POD_SYSCTLS if ipv6 else ()), *(BRIDGED_POD_SYSCTLS if bridged else ()))


def kernel_has_ipv6() -> bool:
    return os.path.isdir("/proc/sys/net/ipv6")


@dataclass(frozen=True, slots=True)
class PodPort:
    """A pod's interface, to be made."""

    interface: str
    """The node's end: `cali...`."""
    pod_interface: str
    """`eth0`."""
    mac: bytes
    """The pod's end."""
    addresses: tuple[tuple[Family, bytes], ...]
    """Packed, each a /32 or /128; at most one default route a family."""
    mtu: int
    proxy_arp: bool = False
    default_routes: bool = True
    spoofs: bool = False
    """The pod may have IPv4 sources that are not its own: the firewall says which, and reverse path filtering is off."""
    secondary: bool = False
    """What comes from its addresses goes out here, all else only while the pod has no default route by another interface."""
    bridge: str = ""
    """The bridge whose port the node's end is; empty: it stands alone."""


class PodWiring:
    """See the module's docstring."""

    def __init__(self, sysctl_root: str = ROOT) -> None:
        """For the network namespace of this thread. Raises OSError where there is no netlink."""
        self._node = open_exchange()
        self._turn = threading.Lock()
        """Who may ask on it: pods are made by several threads."""
        self._sysctls = Sysctls(sysctl_root)

    def close(self) -> None:
        self._node.close()
        self._sysctls.close()

    def attach(self, port: PodPort, namespace: int, inside: socket.socket) -> int:
        """Make a pod's interface; the index of the node's end. `inside` is a netlink socket in the pod.

        What has the node's name already is a leftover, and goes first. Raises KernelError.
        """
        if not _INTERFACE_NAME.fullmatch(port.interface):
            raise KernelError(errno.EINVAL, "", f"{port.interface!r} cannot be an interface")
        what = f"interface {port.interface} of a pod"
        bridge = self._bridge(port) if port.bridge else None  # before anything goes for a pod that may not be made
        try:
            try:
                pair = self._make(port, namespace, what)
            except KernelError as error:
                leftover = self.index_of(port.interface)
                if error.errno != errno.EEXIST or leftover is None:
                    raise
                self.detach(leftover)
                pair = self._make(port, namespace, what)
            self._write_sysctls(port.interface, _files_of(port), pair.ipv6)
            if bridge is not None:
                self._join(port, pair.index, bridge, what)
            self._configure_pod(port, pair.peer, Exchange(inside))
            with self._turn:
                acquaint = self._acquaint(port, pair.index if bridge is None else bridge)
                answers = self._node.ask_all([*acquaint, get_link(self._node.next(), port.interface)], what)
            if not _passes(answers):
                self._await_carrier(port.interface, what)
            self._await_addresses(port, Exchange(inside))
            return pair.index
        except BaseException:
            made = self.index_of(port.interface)
            if made is not None:
                with contextlib.suppress(KernelError):
                    self.detach(made)
            raise

    def forget_at(self, bridge: str, addresses: Iterable[bytes]) -> None:
        """A pod at a bridge is gone: nobody there has its addresses. Raises KernelError."""
        with self._turn:
            at = self._bridge_link(bridge)
            for address in addresses if at is not None else ():
                assert at is not None
                request = remove_neighbour(self._node.next(), at.index, Family.of_address(address), address)
                try:
                    self._node.ask(request, f"removing {format_address(address)} from the bridge {bridge}")
                except KernelError as error:
                    if error.errno != errno.ENOENT:
                        raise

    def index_of(self, interface: str) -> int | None:
        """The index of a link on the node, at once."""
        return self._node.index_of(interface)

    def mtu_of(self, interface: str) -> int:
        """The MTU of a link on the node, at once; 0 where there is none."""
        return self._node.mtu_of(interface)

    def differences(self, port: PodPort, inside: socket.socket) -> list[str]:
        """What of a pod's interface is not as `attach` makes it, for people. Raises KernelError."""
        pod, found = Exchange(inside), []
        end = look(pod, port.pod_interface)
        with self._turn:
            node = read_node(self._node, (port.interface, *((port.bridge,) if port.bridge else ())))
        where = f"{port.pod_interface} in the container"
        if end is None or port.interface not in node.links:
            return [f"{where if end is None else port.interface} is gone"]
        if not end.link.up:
            found.append(f"{where} is down")
        if end.mac != port.mac:
            found.append(f"{where} has the MAC address {end.mac.hex(':')}, not {port.mac.hex(':')}")
        if end.link.mtu != port.mtu:
            found.append(f"{where} has an MTU of {end.link.mtu}, not {port.mtu}")
        for family, address in port.addresses:
            if (address, family.max_length) not in end.addresses:
                found.append(f"the container has no address {format_address(address)}")
        families = list(dict.fromkeys(family for family, _ in port.addresses))
        found += permanent(port.pod_interface, end.neighbours, ((GATEWAYS[family], NODE_MAC) for family in families))
        for family in families if port.default_routes else ():
            table = _TABLES + end.link.index if port.secondary else RT_TABLE_MAIN
            gateway, there = GATEWAYS[family], ways(pod, family, table)
            if (gateway, end.link.index) not in there[DEFAULT_ROUTE]:
                found.append(f"the container has no default route by {format_address(gateway)}")
            to_it = there.get(make_prefix(gateway, family.max_length), [])
            if family is Family.IPV4_UNICAST and (b"", end.link.index) not in to_it:
                found.append(f"the container has no route to {format_address(gateway)}")
            rules = _source_rules(pod, family) if port.secondary else []
            for rule in _rules_of(port, family, end.link.index):
                if rule not in rules:
                    found.append(f"the container has no rule for what comes from {format_address(rule.address)}")
        link = node.links[port.interface][0]
        if link.enabled and not link.up:
            found.append(f"{port.interface} is down")
        return found + list(self.wrong_at_node(port, node))

    def node_state(self, names: Iterable[str] | None = None) -> NodeState:
        """What there is of the node's links of these names, empty ones aside; None: of all. Raises KernelError."""
        with contextlib.closing(open_exchange()) as exchange:
            return read_node(exchange, names if names is None else filter(None, names))

    def pods_ends(self) -> dict[int, str]:
        """See `pods_ends`. Raises KernelError."""
        return pods_ends(self.node_state())

    def wrong_at_node(self, port: PodPort, node: NodeState) -> Iterator[str]:
        """What of the node's end, which is there, `mend` would change, for people."""
        link, facts = node.links[port.interface]
        if not link.enabled:
            yield f"{link.name} is down"
        if facts.mac != NODE_MAC:
            yield f"{link.name} has the MAC address {facts.mac.hex(':')}"
        if link.mtu != port.mtu:
            yield f"{link.name} has an MTU of {link.mtu}, not {port.mtu}"
        at, neighbours = link, ((address, port.mac) for _, address in port.addresses)
        if port.bridge:
            found = node.links.get(port.bridge)
            if found is None or facts.master != found[0].index:
                yield f"{link.name} is no port of {port.bridge}"
                return
            at, about = found
            if not facts.guarded:
                yield f"{link.name} is a port that learns, is not locked or not isolated"
            if port.mac not in node.let_in.get(link.index, ()):
                yield f"{link.name} does not let in {port.mac.hex(':')}"
            if not at.enabled:
                yield f"{at.name} is down"
            if about.mac != NODE_MAC:
                yield f"{at.name} has the MAC address {about.mac.hex(':')}"
            yield from self._wrong_sysctls(at.name, BRIDGE_SYSCTLS)
            yield from self._wrong_sysctls(link.name, PORT_SYSCTLS)
        elif facts.master:
            yield f"{link.name} is a port of somebody's bridge"
        yield from permanent(at.name, node.neighbours.get(at.index, {}), neighbours)
        yield from self._wrong_sysctls(at.name, _sysctls_of(port))

    def mend(self, port: PodPort, node: NodeState) -> None:
        """Make the node's end, which is there, what `attach` makes it. Raises KernelError."""
        what = f"interface {port.interface} of a pod"
        link, facts = node.links[port.interface]
        at = node.links.get(port.bridge)
        is_port = at is not None and facts.master == at[0].index
        with self._turn:
            # a MAC address only where it is another: the kernel forgets a link's neighbours even if it stays the same
            mac = NODE_MAC if facts.mac != NODE_MAC else b""
            requests = [change_link(self._node.next(), link.index, mtu=port.mtu, mac=mac)]
            if facts.master and not port.bridge:
                requests.append(set_master(self._node.next(), link.index, 0))
            if at is not None and is_port and at[1].mac != NODE_MAC:  # with a port of ours in it, it is ours
                requests.append(change_link(self._node.next(), at[0].index, mac=NODE_MAC))
            self._node.ask_all(requests, what)
        let_in = is_port and port.mac in node.let_in.get(link.index, ())
        bridge = self._bridge(port) if port.bridge else None
        self._write_sysctls(port.interface, _files_of(port))
        if bridge is not None:
            self._join(port, link.index, bridge, what, let_in=let_in)
        with self._turn:
            shaped = self._shape(port) if bridge is None else []
            self._node.ask_all([*shaped, *self._acquaint(port, link.index if bridge is None else bridge)], what)

    def detach(self, index: int) -> None:
        """Delete a pair by the node's end; one that is gone is no error. Slow: see the module's docstring."""
        exchange = open_exchange()
        with contextlib.closing(exchange):
            try:
                exchange.ask(delete_link(exchange.next(), index), f"removing interface {index}")
            except KernelError as error:
                if error.errno != errno.ENODEV:
                    raise

    def detach_all(self, indexes: Sequence[int]) -> None:
        """Delete pairs by the node's ends, together: for many the kernel waits hardly longer than for one."""
        if len(indexes) == 1:
            self.detach(indexes[0])
            return
        group = secrets.randbelow(1 << 30) | 1 << 30  # nobody else's links are in it
        with contextlib.closing(open_exchange()) as exchange:
            into_group = [set_link_group(exchange.next(), each, group) for each in indexes]
            for requests in (into_group, [delete_group(exchange.next(), group)]):
                try:
                    exchange.ask_all(requests, f"removing {len(indexes)} interfaces")
                except KernelError as error:
                    if error.errno != errno.ENODEV:  # some are gone already, or all
                        raise

    # ---- inside

    def mend_if_there(self, port: PodPort) -> None:
        """`mend` by what there is now, if the node's end is. Raises KernelError."""
        node = self.node_state((port.interface, port.bridge))
        if port.interface in node.links and any(self.wrong_at_node(port, node)):
            self.mend(port, node)

    def _make(self, port: PodPort, namespace: int, what: str) -> Pair:
        """A pair, the node's end as it is to be: nothing passes before its other end is up too."""
        node = self._node
        with self._turn:
            made = make_veth(
                node.next(),
                name=port.interface,
                mac=NODE_MAC,
                peer_name=port.pod_interface,
                peer_mac=port.mac,
                peer_namespace=namespace,
                mtu=port.mtu,
            )
            shaped = self._shape(port) if not port.bridge else []  # a port is up when it has joined
            answers = node.ask_all([made, *shaped, get_link(node.next(), port.interface)], what)
        return decode_pair(answers[0].data)

    def _shape(self, port: PodPort) -> list[bytes]:
        """What has the node's end that stands alone be as it is to be, and up."""
        settings = {_BY_MESSAGE[path]: int(value) for path, value in _sysctls_of(port) if path in _BY_MESSAGE}
        has_ipv6 = self._sysctls.have("ipv6/conf") and port.mtu >= _IPV6_MTU
        return [
            configure_link(self._node.next(), port.interface, settings, link_local=_speaks_ipv6(port) or not has_ipv6),
            set_named_link_up(self._node.next(), port.interface),
        ]

    def _acquaint(self, port: PodPort, at: int) -> list[bytes]:
        """What has the node's end, or its bridge, know the pod."""
        node = self._node
        return [set_neighbour(node.next(), at, family, address, port.mac) for family, address in port.addresses]

    def _join(self, port: PodPort, index: int, bridge: int, what: str, *, let_in: bool = False) -> None:
        """`let_in`: the port lets the pod's MAC address in already."""
        node = self._node
        with self._turn:
            joining = [set_master(node.next(), index, bridge), guard_port(node.next(), index)]
            node.ask_all([*joining, set_link_up(node.next(), index)], what)
            if not let_in:
                self._let_in(port, index)

    def _bridge(self, port: PodPort) -> int:
        """The bridge's index; it is made where there is none. Raises KernelError where somebody else's has the name."""
        what, name = f"the bridge {port.bridge} of pods", port.bridge
        if not _INTERFACE_NAME.fullmatch(name):
            raise KernelError(errno.EINVAL, "", what)
        with self._turn:
            found = self._bridge_link(name)
            if found is None:
                self._node.ask(make_bridge(self._node.next(), name, NODE_MAC), what)
                found = self._bridge_link(name)
            if found is None or found.kind != "bridge" or found.mac != NODE_MAC:
                raise KernelError(
                    errno.EBUSY, "an interface of somebody else has this name; name another in `bridge`", what
                )
            self._write_sysctls(name, (*_sysctls_of(port), *BRIDGE_SYSCTLS))
            self._node.ask(set_link_up(self._node.next(), found.index), what)
        return found.index

    def _let_in(self, port: PodPort, index: int) -> None:
        what = f"interface {port.interface} of a pod: its MAC address {port.mac.hex(':')} at the bridge {port.bridge}"
        try:
            self._node.ask(add_port_address(self._node.next(), index, port.mac), what)
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            raise KernelError(errno.EBUSY, "another pod there has it", what) from None

    def _bridge_link(self, name: str) -> BridgeLink | None:
        try:
            (answer,) = self._node.ask(get_link(self._node.next(), name), f"interface {name}")
        except KernelError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return decode_bridge_link(answer.data)

    def _configure_pod(self, port: PodPort, index: int, inside: Exchange) -> None:
        requests = [set_link_up(inside.next(), _LOOPBACK), set_link_up(inside.next(), index)]
        for family, address in port.addresses:
            requests.append(add_host_address(inside.next(), index, family, address))
        for family in dict.fromkeys(family for family, _ in port.addresses):
            gateway = GATEWAYS[family]
            requests.append(set_neighbour(inside.next(), index, family, gateway, NODE_MAC))
            if not port.default_routes:
                continue
            tables = [RT_TABLE_MAIN]
            if port.secondary:
                self._forget_rules(inside, family)
                tables = [_TABLES + index, *(() if ways(inside, family)[DEFAULT_ROUTE] else tables)]
            for table in tables:
                if family is Family.IPV4_UNICAST:
                    requests.append(add_link_route(inside.next(), index, family, gateway, table))
                requests.append(add_default_route(inside.next(), index, family, gateway, table))
            requests += [add_source_rule(inside.next(), each) for each in _rules_of(port, family, index)]
        addresses = ", ".join(format_address(address) for _, address in port.addresses)
        inside.ask_all(requests, f"interface {port.pod_interface} inside the pod ({addresses})")

    def _forget_rules(self, inside: Exchange, family: Family) -> None:
        """Rules of second interfaces that are gone: the kernel removes their routes, and leaves these."""
        what = "the rules inside the pod"
        links = (decode_link(message.data) for message in inside.dump(dump_links(inside.next()), what))
        tables = {_TABLES + link.index for link in links if link is not None}
        for rule in _source_rules(inside, family):
            if rule.table > _TABLES and rule.table not in tables:
                inside.ask(delete_source_rule(inside.next(), rule), what)

    def _await_carrier(self, interface: str, what: str) -> None:
        """Until the node's end takes packets. It was up before the pod's end was, and hears of that by the kernel's
        link watch, which waits for others' changes: what is sent before is dropped without a word."""
        until = time.monotonic() + _CARRIER
        while True:
            with self._turn:  # newer kernels have the link watch look before they answer
                answers = self._node.ask(get_link(self._node.next(), interface), what)
            if _passes(answers):
                return
            if time.monotonic() > until:
                raise KernelError(errno.ENETDOWN, "the kernel does not see that its other end is up", what)
            time.sleep(_LOOK_AGAIN)

    def _await_addresses(self, port: PodPort, inside: Exchange) -> None:
        """Until the pod takes what is for its IPv6 addresses. The kernel says that it has them, and makes the routes to them
        later, among its other work; what comes before is no packet of the pod's."""
        until = time.monotonic() + _CARRIER
        for family, address in port.addresses:
            what = f"interface {port.pod_interface} inside the pod ({format_address(address)})"
            while family is Family.IPV6_UNICAST and not is_at_home(inside, address, what):
                if time.monotonic() > until:
                    raise KernelError(errno.EADDRNOTAVAIL, "the kernel makes no route to its address", what)
                time.sleep(_LOOK_AGAIN)

    def _write_sysctls(self, interface: str, values: Iterable[tuple[str, str]], told: Sequence[int] = ()) -> None:
        """`told`: what the kernel said of the interface's IPv6."""
        for template, value in values:
            if told and template in _TOLD and told[_TOLD[template]] == int(value):
                continue
            path = template.format(interface)
            try:
                self._sysctls.set(path, value)
            except FileNotFoundError:
                if not template.startswith("ipv6/"):  # a kernel may be without IPv6
                    raise KernelError(errno.ENOENT, "", f"net/{path}") from None
            except OSError as error:
                raise KernelError(error.errno or 0, "", f"writing {value} to net/{path}") from None

    def _wrong_sysctls(self, interface: str, values: Iterable[tuple[str, str]]) -> Iterator[str]:
        for template, value in values:
            path = template.format(interface)
            try:
                there = self._sysctls.read(path)
            except OSError:  # the link is gone, which was said, or a kernel is without IPv6
                continue
            if there != value:
                yield f"net/{path} is {there}, not {value}"


def pods_ends(node: NodeState) -> dict[int, str]:
    """The node's ends that were made here, whoever they are for: names by index."""
    return {
        link.index: link.name
        for link, facts in node.links.values()
        if facts.kind == "veth" and facts.mac == NODE_MAC and _NAME.fullmatch(link.name)
    }


def _passes(answers: Iterable[Message]) -> bool:
    """Whether a link, by what the kernel says of it, hands packets on."""
    links = [decode_link(answer.data) for answer in answers]
    return any(link is not None and link.up and link.running for link in links)


def _speaks_ipv6(port: PodPort) -> bool:
    """The node's end has IPv6; a bridge has it for all that may come."""
    return bool(port.bridge) or any(family is Family.IPV6_UNICAST for family, _ in port.addresses)


def _files_of(port: PodPort) -> Iterator[tuple[str, str]]:
    """What of the node's end is set by files."""
    wanted = PORT_SYSCTLS if port.bridge else _sysctls_of(port)
    return (each for each in wanted if each[0] not in _BY_MESSAGE)


def _sysctls_of(port: PodPort) -> tuple[tuple[str, str], ...]:
    """On the node's end, or on the bridge in its place."""
    asked = NODE_SYSCTLS + (IPV6_SYSCTLS if _speaks_ipv6(port) else ()) + (PROXY_SYSCTLS if port.proxy_arp else ())
    return tuple((path, "0" if port.spoofs and path.endswith("/rp_filter") else value) for path, value in asked)


def _source_rules(inside: Exchange, family: Family) -> list[SourceRule]:
    """Those at the place where ours are."""
    messages = inside.dump(dump_rules(inside.next(), family), "the rules inside the pod")
    found = (decode_source_rule(message.data) for message in messages)
    return [each for each in found if each is not None and each.priority == _RULE_PRIORITY]


def _rules_of(port: PodPort, family: Family, index: int) -> list[SourceRule]:
    """By which a second interface has routes of its own, whichever of the pod's interfaces came first."""
    if not port.secondary or not port.default_routes:
        return []
    return [
        SourceRule(family, address, _TABLES + index, _RULE_PRIORITY)
        for each, address in port.addresses
        if each is family
    ]
