"""A model of the kernel's routing table that answers the same netlink bytes, and a driver for what talks to it.

`ModelKernel` keeps links, addresses and routes and behaves as Linux does where `dataplane/` depends on it: exclusive,
replacing and appending creation, IPv6's joining of multipath groups, refusals, strict dumps, notifications that carry
their cause's port id, IPv4 routes that vanish without a word when their link goes down. The contract tests run against
it and against a real kernel, so that it can't drift.

`Driver` runs a `KernelEngine` over any sockets with `send` and `receive`: the model's or real ones.

Long for one idea: what Linux does to a route on each request, each event and in each dump depends on the same few tables.

Not modelled: TOS, source routing, nexthop objects, tables' priorities, IPv6 duplicate address detection.
"""

from __future__ import annotations

import errno as errnos
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import field, replace
from typing import Protocol

from routed.dataplane.engine import KernelEngine
from routed.desired import Gateway, RouteKind
from routed.net.families import Family
from routed.net.prefixes import covers, make_prefix, prefix_address
from routed.netlink.messages import HEADER, HEADER_LENGTH, Message, attribute, messages
from routed.netlink.numbers import (
    IFA_ADDRESS,
    IFA_LOCAL,
    IFF_LOWER_UP,
    IFF_UP,
    IFLA_IFNAME,
    IP6_RT_PRIO_USER,
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_MULTI,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSGERR_ATTR_MSG,
    RT_SCOPE_LINK,
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_COMPAT,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTNH_F_ONLINK,
)
from routed.netlink.routes import AF_OF_FAMILY, RTMSG, RouteDecoder
from routed.values import dataclass

_U32 = struct.Struct("=I")
_PROTOCOL_KERNEL = 2
_IPV6_CONNECTED_METRIC = 256
#: How much of a dump goes into one datagram.
_DUMP_SIZE = 16384


class Socket(Protocol):
    """What a driver needs of a netlink socket."""

    port: int

    def send(self, data: bytes) -> None: ...
    def receive(self) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class FibRoute:
    """One route in the model (in IPv6, one leg or group of legs with one protocol)."""

    family: Family
    prefix: bytes
    table: int
    metric: int
    protocol: int
    kind: int
    gateways: tuple[Gateway, ...]
    """In the order given."""


@dataclass(slots=True)
class _Link:
    index: int
    name: str
    enabled: bool = True
    carrier: bool = True
    addresses: list[tuple[bytes, int]] = field(default_factory=list)


class ModelSocket:
    """A netlink socket to the model."""

    def __init__(self, kernel: ModelKernel, port: int, *, listening: bool, ignore_port: int, capacity: int) -> None:
        self.port = port
        self.listening = listening
        self.ignore_port = ignore_port
        self.capacity = capacity
        """Datagrams it holds before it loses them."""
        self.queue: deque[bytes] = deque()
        self.overflowed = False
        self._kernel = kernel

    def send(self, data: bytes) -> None:
        self._kernel.handle(self, data)

    def receive(self) -> bytes | None:
        if self.overflowed:
            self.overflowed = False
            raise OSError(errnos.ENOBUFS, "No buffer space available")
        return self.queue.popleft() if self.queue else None

    def deliver(self, data: bytes) -> None:
        if len(self.queue) >= self.capacity:
            self.overflowed = True
        else:
            self.queue.append(data)


class ModelKernel:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.permitted = True
        """Whether changes are allowed (CAP_NET_ADMIN)."""
        self._links: dict[int, _Link] = {}
        self._routes: dict[tuple[Family, int], dict[bytes, list[FibRoute]]] = {}
        """By family and table, then prefix; in the kernel's order: by metric, then as inserted."""
        self._sockets: list[ModelSocket] = []
        self._failures: list[tuple[str, int, str]] = []
        self._decoder = RouteDecoder()
        self._next_index = 1
        self._next_port = 1000
        self.lose_answers_of = 0
        """Port id of a socket whose next answers do not fit its buffer."""

    # ---- the test's side

    def open(self, *, listening: bool = False, ignore_port: int = 0, capacity: int = 1 << 30) -> ModelSocket:
        """A socket; `listening` hears notifications but those that `ignore_port` caused."""
        self._next_port += 1
        opened = ModelSocket(self, self._next_port, listening=listening, ignore_port=ignore_port, capacity=capacity)
        self._sockets.append(opened)
        return opened

    def fail_next(self, operation: str, errno: int, text: str = "") -> None:
        """Refuse the next RTM_NEWROUTE ("add") or RTM_DELROUTE ("delete")."""
        self._failures.append((operation, errno, text))

    def add_link(self, name: str) -> int:
        """A link that is up; its index."""
        link = _Link(self._next_index, name)
        self._next_index += 1
        self._links[link.index] = link
        self._notify(_link_message(RTM_NEWLINK, link), 0)
        return link.index

    def set_link(self, index: int, *, enabled: bool) -> None:
        link = self._links[index]
        if link.enabled == enabled:
            return
        link.enabled = enabled
        self._notify(_link_message(RTM_NEWLINK, link), 0)
        if not enabled:
            self._flush(index, notify={Family.IPV6_UNICAST})
        else:
            for address, length in link.addresses:
                self._connect(link, address, length)

    def set_carrier(self, index: int, *, carrier: bool) -> None:
        link = self._links[index]
        link.carrier = carrier
        self._notify(_link_message(RTM_NEWLINK, link), 0)

    def remove_link(self, index: int) -> None:
        link = self._links[index]
        link.enabled = False
        for address, length in list(link.addresses):
            link.addresses.remove((address, length))
            self._notify(_address_message(RTM_DELADDR, index, address, length), 0)
        self._flush(index, notify={Family.IPV6_UNICAST})
        del self._links[index]
        self._notify(_link_message(RTM_DELLINK, link), 0)

    def add_address(self, index: int, address: bytes, length: int) -> None:
        link = self._links[index]
        link.addresses.append((address, length))
        self._notify(_address_message(RTM_NEWADDR, index, address, length), 0)
        if link.enabled:
            self._connect(link, address, length)

    def remove_address(self, index: int, address: bytes, length: int) -> None:
        link = self._links[index]
        link.addresses.remove((address, length))
        family = Family.of_address(address)
        prefix = make_prefix(address, length)
        for route in self._at(family, RT_TABLE_MAIN, prefix):
            if route.protocol == _PROTOCOL_KERNEL and route.gateways == (Gateway(b"", index),):
                self._drop(route)
                self._notify(_route_message(RTM_DELROUTE, route, 0, 0), 0)
        self._notify(_address_message(RTM_DELADDR, index, address, length), 0)
        if family is Family.IPV4_UNICAST and not any(len(own) == 4 for own, _ in link.addresses):
            self._flush(index, notify=set(), families={Family.IPV4_UNICAST})

    def routes(self, table: int = RT_TABLE_MAIN) -> list[FibRoute]:
        """Everything in a table."""
        found = []
        for (_, number), prefixes in self._routes.items():
            if number == table:
                for at in prefixes.values():
                    found += at
        return found

    def lookup(self, address: bytes, table: int = RT_TABLE_MAIN) -> FibRoute | None:
        """The route the kernel would take."""
        family = Family.of_address(address)
        host = make_prefix(address, family.max_length)
        matching = [
            at[0] for prefix, at in self._routes.get((family, table), {}).items() if at and covers(prefix, host)
        ]
        return max(matching, key=lambda route: route.prefix[0], default=None)

    # ---- the kernel's side

    def handle(self, sender: ModelSocket, data: bytes) -> None:
        """Carry out one send."""
        answers: list[bytes] = []
        for message in messages(data):
            message = message._replace(port=sender.port)
            if message.type == RTM_GETROUTE and message.flags & NLM_F_DUMP == NLM_F_DUMP:
                answers += self._dump(message, self._dump_routes(message))
            elif message.type == RTM_GETLINK:
                answers += self._dump(message, [_link_message(RTM_NEWLINK, link) for link in self._links.values()])
            elif message.type == RTM_GETADDR:
                answers += self._dump(
                    message,
                    [
                        _address_message(RTM_NEWADDR, link.index, address, length)
                        for link in self._links.values()
                        for address, length in link.addresses
                    ],
                )
            else:
                errno, text = (0, "")
                if message.type in (RTM_NEWROUTE, RTM_DELROUTE):
                    errno, text = self._change(message)
                if errno or message.flags & NLM_F_ACK:
                    answers.append(_answer(message, errno, text))
        if sender.port == self.lose_answers_of:
            self.lose_answers_of = 0
            sender.overflowed = True
            return
        for answer in answers:
            sender.deliver(answer)

    def _change(self, message: Message) -> tuple[int, str]:
        """One RTM_NEWROUTE or RTM_DELROUTE: (errno, extended-ACK text)."""
        if not self.permitted:
            return errnos.EPERM, ""
        wanted = "add" if message.type == RTM_NEWROUTE else "delete"
        for index, (operation, errno, text) in enumerate(self._failures):
            if operation == wanted:
                del self._failures[index]
                return errno, text
        decoded = self._decoder.decode(message.data)
        if decoded is None:
            return errnos.EINVAL, ""
        family, prefix, facts = decoded
        metric = facts.metric
        if family is Family.IPV6_UNICAST and message.type == RTM_NEWROUTE:
            metric = metric or IP6_RT_PRIO_USER
        route = FibRoute(family, prefix, facts.table, metric, facts.protocol, facts.kind, facts.gateways)
        if message.type == RTM_DELROUTE:
            return self._delete(route, message.port)
        route, errno, text = self._validate(route)
        if errno:
            return errno, text
        if family is Family.IPV4_UNICAST:
            return self._add_ipv4(route, message), ""
        return self._add_ipv6(route, message), ""

    def _validate(self, route: FibRoute) -> tuple[FibRoute, int, str]:
        """Find the interfaces of legs that name none; refuse what can't work."""
        legs = []
        for leg in route.gateways:
            if not leg.interface:
                index = self._on_link(leg.address)
                if index is None:
                    return route, errnos.ENETUNREACH, "Nexthop has invalid gateway"
                leg = replace(leg, interface=index)
            link = self._links.get(leg.interface)
            if link is None:
                return route, errnos.ENODEV, ""
            if not link.enabled:
                return route, errnos.ENETDOWN, "Nexthop device is not up"
            if leg.address and not leg.onlink and self._on_link(leg.address, leg.interface) is None:
                errno = errnos.ENETUNREACH if route.family is Family.IPV4_UNICAST else errnos.EHOSTUNREACH
                return route, errno, "Nexthop has invalid gateway"
            legs.append(leg)
        return replace(route, gateways=tuple(legs)), 0, ""

    def _on_link(self, address: bytes, interface: int = 0) -> int | None:
        """The interface on whose link an address is."""
        family = Family.of_address(address)
        if address[:2] == b"\xfe\x80":
            return interface or None
        host = make_prefix(address, family.max_length)
        for table in (RT_TABLE_MAIN,):
            for prefix, at in self._routes.get((family, table), {}).items():
                for route in at:
                    for leg in route.gateways:
                        if not leg.address and covers(prefix, host) and interface in (0, leg.interface):
                            return leg.interface
        return None

    def _add_ipv4(self, route: FibRoute, message: Message) -> int:
        flags = message.flags
        at = self._at(route.family, route.table, route.prefix)
        same = [other for other in at if other.metric == route.metric]
        if same:
            if flags & NLM_F_EXCL:
                return errnos.EEXIST
            if flags & NLM_F_REPLACE:
                if route in same:
                    return 0 if same[0] == route else errnos.EEXIST
                self._drop(same[0])
                self._insert(route, before=same[1] if len(same) > 1 else None)
                self._notify(_route_message(RTM_NEWROUTE, route, NLM_F_REPLACE, 0), message.port)
                return 0
            if route in same:
                return errnos.EEXIST
        if not flags & NLM_F_CREATE:
            return errnos.ENOENT
        self._insert(route, before=same[0] if same and not flags & NLM_F_APPEND else None)
        shown = NLM_F_CREATE | (flags & NLM_F_APPEND)
        self._notify(_route_message(RTM_NEWROUTE, route, shown, 0), message.port)
        return 0

    def _add_ipv6(self, route: FibRoute, message: Message) -> int:
        flags = message.flags
        at = self._at(route.family, route.table, route.prefix)
        same = [other for other in at if other.metric == route.metric]
        if same and flags & NLM_F_EXCL:
            return errnos.EEXIST
        shown = flags & (NLM_F_CREATE | NLM_F_REPLACE | NLM_F_APPEND)
        if flags & NLM_F_REPLACE:
            group = [other for other in same if _joins(other) == _joins(route)] or same[:1]
            if not group and not flags & NLM_F_CREATE:
                return errnos.ENOENT
            for other in group:
                self._drop(other)
            self._insert(route)
            self._notify(_route_message(RTM_NEWROUTE, route, shown, 0), message.port)
            return 0
        if not flags & NLM_F_CREATE:
            return errnos.ENOENT
        group = [other for other in same if _joins(other) and _joins(route)]
        if any(set(other.gateways) & set(route.gateways) for other in group) or (same and route in same):
            return errnos.EEXIST
        self._insert(route)
        legs = route.gateways + tuple(leg for other in group for leg in other.gateways)
        self._notify(_route_message(RTM_NEWROUTE, replace(route, gateways=legs), shown, 0), message.port)
        return 0

    def _delete(self, wanted: FibRoute, port: int) -> tuple[int, str]:
        family = wanted.family
        for route in self._at(family, wanted.table, wanted.prefix):
            if wanted.protocol and route.protocol != wanted.protocol:
                continue
            if wanted.metric and route.metric != wanted.metric:
                continue
            if wanted.kind and family is Family.IPV4_UNICAST and route.kind != wanted.kind:
                continue
            if family is Family.IPV6_UNICAST and wanted.gateways:
                gone = tuple(leg for leg in route.gateways if leg in wanted.gateways)
                if not gone:
                    continue
                self._remove_legs(route, gone, port)
                return 0, ""
            if wanted.gateways and set(route.gateways) != set(wanted.gateways):
                continue
            if family is Family.IPV6_UNICAST and _joins(route):  # the whole group goes, whoever's legs they are
                for other in self._at(family, wanted.table, wanted.prefix):
                    if other.metric == route.metric and _joins(other):
                        self._drop(other)
                        self._notify(_route_message(RTM_DELROUTE, other, 0, 0), port)
                return 0, ""
            self._drop(route)
            self._notify(_route_message(RTM_DELROUTE, route, 0, 0), port)
            return 0, ""
        return errnos.ESRCH, ""

    def _remove_legs(self, route: FibRoute, gone: tuple[Gateway, ...], port: int) -> None:
        at = self._routes[route.family, route.table][route.prefix]
        left = tuple(leg for leg in route.gateways if leg not in gone)
        if left:
            at[at.index(route)] = replace(route, gateways=left)
        else:
            self._drop(route)
        self._notify(_route_message(RTM_DELROUTE, replace(route, gateways=gone), 0, 0), port)

    # ---- inside

    def _at(self, family: Family, table: int, prefix: bytes) -> list[FibRoute]:
        return list(self._routes.get((family, table), {}).get(prefix, ()))

    def _insert(self, route: FibRoute, before: FibRoute | None = None) -> None:
        at = self._routes.setdefault((route.family, route.table), {}).setdefault(route.prefix, [])
        if before is not None:
            at.insert(at.index(before), route)
        else:
            at.insert(sum(other.metric <= route.metric for other in at), route)

    def _drop(self, route: FibRoute) -> None:
        prefixes = self._routes[route.family, route.table]
        prefixes[route.prefix].remove(route)
        if not prefixes[route.prefix]:
            del prefixes[route.prefix]

    def _connect(self, link: _Link, address: bytes, length: int) -> None:
        """The connected route of an address."""
        family = Family.of_address(address)
        prefix = make_prefix(address, length)
        metric = 0 if family is Family.IPV4_UNICAST else _IPV6_CONNECTED_METRIC
        gateways = (Gateway(b"", link.index),)
        route = FibRoute(family, prefix, RT_TABLE_MAIN, metric, _PROTOCOL_KERNEL, RouteKind.UNICAST, gateways)
        if length == family.max_length and family is Family.IPV4_UNICAST:
            return
        if route not in self._at(family, RT_TABLE_MAIN, prefix):
            self._insert(route)
            self._notify(_route_message(RTM_NEWROUTE, route, NLM_F_CREATE, 0), 0)

    def _flush(self, index: int, *, notify: set[Family], families: set[Family] | None = None) -> None:
        """Remove routes all of whose legs are dead now that a link is."""
        for (family, _), prefixes in self._routes.items():
            if families is not None and family not in families:
                continue
            for at in list(prefixes.values()):
                for route in list(at):
                    interfaces = {leg.interface for leg in route.gateways}
                    others = [self._links.get(other) for other in interfaces - {index}]
                    if index in interfaces and not any(link is not None and link.enabled for link in others):
                        self._drop(route)
                        if family in notify:
                            self._notify(_route_message(RTM_DELROUTE, route, 0, 0), 0)

    def _notify(self, message: bytes, port: int) -> None:
        data = message[:12] + _U32.pack(port) + message[16:]
        for listener in self._sockets:
            if listener.listening and (not port or listener.ignore_port != port):
                listener.deliver(data)

    def _dump_routes(self, request: Message) -> list[bytes]:
        decoded = self._decoder.decode(request.data)
        if decoded is None:
            return []
        family, _, facts = decoded
        out = []
        for at in self._routes.get((family, facts.table), {}).values():
            shown: set[int] = set()
            for route in at:
                if family is Family.IPV6_UNICAST and _joins(route):
                    if route.metric in shown:
                        continue  # shown with its group, under the protocol of the first leg
                    shown.add(route.metric)
                    group = [other for other in at if other.metric == route.metric and _joins(other)]
                    route = replace(route, gateways=tuple(leg for other in group for leg in other.gateways))
                out.append(_route_message(RTM_NEWROUTE, route, 0, 0))
        return out

    def _dump(self, request: Message, parts: list[bytes]) -> list[bytes]:
        """Datagrams of a multipart answer."""
        datagrams = [b""]
        done = HEADER.pack(HEADER_LENGTH + 4, NLMSG_DONE, NLM_F_MULTI, request.sequence, request.port) + bytes(4)
        for part in (*parts, done):
            flags = struct.unpack_from("=H", part, 6)[0] | NLM_F_MULTI
            part = part[:6] + struct.pack("=HII", flags, request.sequence, request.port) + part[16:]
            if len(datagrams[-1]) + len(part) > _DUMP_SIZE:
                datagrams.append(b"")
            datagrams[-1] += part
        return datagrams


class Driver:
    """Runs an engine over sockets, on a clock of the caller's.

    `wait(deadline)` is called when nothing is left to do now: it returns the new `now`, at the latest `deadline`.
    """

    def __init__(
        self,
        engine: KernelEngine,
        *,
        writer: Socket,
        monitor: Socket,
        dumper: Socket,
        wait: Callable[[float], float],
        now: float = 0.0,
    ) -> None:
        self.engine = engine
        self.now = now
        self._writer = writer
        self._monitor = monitor
        self._dumper = dumper
        self._wait = wait

    def pump(self) -> None:
        """Do everything that can be done now."""
        while self._step():
            pass

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            self.pump()
            if self.now >= end:
                return
            at = self.engine.next_timer()
            self.now = max(self.now, self._wait(min(end, at) if at is not None else end))

    def run_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Let time pass until a condition holds; whether it does."""
        end = self.now + seconds
        while True:
            self.pump()
            if condition():
                return True
            if self.now >= end:
                return False
            at = self.engine.next_timer()
            self.now = max(self.now, self._wait(min(end, at) if at is not None else end))

    def _step(self) -> bool:
        engine, now = self.engine, self.now
        busy = False
        at = engine.next_timer()
        if at is not None and at <= now:
            engine.handle_timer(now)
        while (data := self._receive(self._monitor, engine.monitor_overflow)) is not None:
            engine.monitor_data(data, now)
            busy = True
        while (data := self._receive(self._dumper, engine.dump_lost)) is not None:
            engine.dump_data(data, now)
            busy = True
        chunk = engine.take_write(now)
        if chunk:
            self._writer.send(chunk)
            while (data := self._receive(self._writer, engine.writer_overflow)) is not None:
                engine.writer_data(data, now)
        request = engine.take_dump(now)
        if request:
            self._dumper.send(request)
        return busy or chunk is not None or bool(request) or (engine.next_timer() or now + 1) <= now

    def _receive(self, source: Socket, overflow: Callable[[float], None]) -> bytes | None:
        while True:
            try:
                return source.receive()
            except OSError as error:
                if error.errno != errnos.ENOBUFS:
                    raise
                overflow(self.now)


def model_driver(kernel: ModelKernel, engine_for_port: Callable[[int], KernelEngine]) -> Driver:
    """A driver over the model, whose clock jumps."""
    writer = kernel.open()
    monitor = kernel.open(listening=True, ignore_port=writer.port)
    engine = engine_for_port(writer.port)
    return Driver(engine, writer=writer, monitor=monitor, dumper=kernel.open(), wait=lambda deadline: deadline)


def _joins(route: FibRoute) -> bool:
    """Whether an IPv6 route takes part in multipath groups: it has gateways."""
    return any(leg.address for leg in route.gateways)


def _answer(request: Message, errno: int, text: str) -> bytes:
    """NLMSG_ERROR: an acknowledgement, or a refusal with the request and the extended ACK."""
    flags = 0
    body = struct.pack("=i", -errno) + (request.data if errno else request.data[:HEADER_LENGTH])
    if errno and text:
        flags |= NLM_F_ACK_TLVS
        body += bytes(-len(body) & 3) + attribute(NLMSGERR_ATTR_MSG, text.encode() + b"\x00")
    return HEADER.pack(HEADER_LENGTH + len(body), NLMSG_ERROR, flags, request.sequence, request.port) + body


def _link_message(kind: int, link: _Link) -> bytes:
    flags = (IFF_UP if link.enabled else 0) | (IFF_LOWER_UP if link.enabled and link.carrier else 0)
    body = struct.pack("=BBHiII", 0, 0, 1, link.index, flags, 0)
    body += attribute(IFLA_IFNAME, link.name.encode() + b"\x00")
    return HEADER.pack(HEADER_LENGTH + len(body), kind, 0, 0, 0) + body


def _address_message(kind: int, index: int, address: bytes, length: int) -> bytes:
    family = Family.of_address(address)
    body = struct.pack("=BBBBI", AF_OF_FAMILY[family], length, 0, 0, index) + attribute(IFA_ADDRESS, address)
    if family is Family.IPV4_UNICAST:
        body += attribute(IFA_LOCAL, address)
    return HEADER.pack(HEADER_LENGTH + len(body), kind, 0, 0, 0) + body


def _route_message(kind: int, route: FibRoute, flags: int, sequence: int) -> bytes:
    """A route as the kernel shows it: RTA_TABLE, RTA_DST, RTA_PRIORITY, then where it leads."""
    family = route.family
    single = route.gateways[0] if len(route.gateways) == 1 else None
    scope = RT_SCOPE_UNIVERSE if any(leg.address for leg in route.gateways) else RT_SCOPE_LINK
    body = RTMSG.pack(
        AF_OF_FAMILY[family], route.prefix[0], 0, 0, route.table if route.table <= 255 else RT_TABLE_COMPAT,
        route.protocol, scope, route.kind, RTNH_F_ONLINK if single is not None and single.onlink else 0,
    )  # fmt: skip
    body += attribute(RTA_TABLE, _U32.pack(route.table))
    if route.prefix[0]:
        body += attribute(RTA_DST, prefix_address(family, route.prefix))
    if route.metric:
        body += attribute(RTA_PRIORITY, _U32.pack(route.metric))
    if single is not None:
        body += _gateway(family, single.address) + attribute(RTA_OIF, _U32.pack(single.interface))
    elif route.gateways:
        legs = b""
        for leg in route.gateways:
            via = _gateway(family, leg.address)
            legs += struct.pack("=HBBi", 8 + len(via), RTNH_F_ONLINK if leg.onlink else 0, 0, leg.interface) + via
        body += attribute(RTA_MULTIPATH, legs)
    return HEADER.pack(HEADER_LENGTH + len(body), kind, flags, sequence, 0) + body


def _gateway(family: Family, address: bytes) -> bytes:
    if not address:
        return b""
    if len(address) == family.address_length:
        return attribute(RTA_GATEWAY, address)
    return attribute(RTA_VIA, struct.pack("=H", AF_OF_FAMILY[Family.of_address(address)]) + address)


def command(
    route: FibRoute, *, delete: bool = False, flags: int = NLM_F_CREATE | NLM_F_EXCL, sequence: int = 1
) -> bytes:
    """The request another program would send to make or remove a route, acknowledged."""
    kind = RTM_DELROUTE if delete else RTM_NEWROUTE
    message = _route_message(kind, route, (0 if delete else flags) | NLM_F_REQUEST | NLM_F_ACK, sequence)
    if delete:  # any scope
        scope = HEADER_LENGTH + 6
        return message[:scope] + bytes((RT_SCOPE_NOWHERE,)) + message[scope + 1 :]
    return message
