"""Tunnel devices made equal to what is desired: looked at, compared, changed where they differ.

Everything is read back each time, so what a crash or somebody else left behind is put right by the same steps as a change,
and where nothing differs nothing is written: a restart costs no packet.

Invariants: addresses, forwarding entries and neighbours of a new device are there before it is up, or in the same breath, so
that no packet finds it half made; a device whose nature is another (VNI, port, local address) is made anew, all else changes
in place. Only devices with the names in KINDS are touched, and of those only links of the right kind: another
program's interface that happens to have the name is reported. Calls wait for the kernel: they belong into a thread.

Not here: which tunnels there should be (`plan/tunnels`), routes into them (`routes`).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Sequence

from routed.dataplane.exchange import open_exchange
from routed.desired import LEAST_MTU_OF_IPV6, Tunnel, TunnelKind, tunnel_overhead
from routed.errors import KernelError
from routed.model.resources import IPIP_DEVICE, VXLAN_DEVICES
from routed.net.addresses import format_address
from routed.net.families import Family
from routed.netlink.links import Address, Link, decode_address, decode_link, dump_addresses, dump_links, link_name
from routed.netlink.messages import Message
from routed.netlink.tunnels import (
    NeighbourEntry,
    TunnelLink,
    change_link,
    decode_neighbour,
    decode_tunnel,
    dump_neighbours,
    make_ipip,
    make_vxlan,
    remove_address,
    remove_forwarding,
    remove_neighbour,
    set_forwarding,
)
from routed.netlink.veth import add_host_address, delete_link, get_link, set_neighbour
from routed.plan.autodetect import VIRTUAL
from routed.values import dataclass

#: What the kernel takes where the uplink's MTU cannot be told.
DEFAULT_MTU = 1500

#: What says of a device that it was made here, and not by Felix.
ALIAS = "made by routed"

KINDS = {**dict.fromkeys(VXLAN_DEVICES.values(), TunnelKind.VXLAN), IPIP_DEVICE: TunnelKind.IPIP}
"""The devices that are ours to make and to remove."""


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What became of a tunnel."""

    tunnel: Tunnel
    index: int
    mtu: int


class _CannotBeError(Exception):
    """No kernel would make such a device; the text is for people."""


class TunnelKernel:
    """See the module's docstring. One thread at a time."""

    def __init__(self) -> None:
        """Raises OSError where there is no netlink."""
        self._kernel = open_exchange()

    def close(self) -> None:
        """The devices stay."""
        self._kernel.close()

    def make(self, tunnels: Sequence[Tunnel], *, remove: bool = True) -> tuple[list[DeviceState], list[str]]:
        """Make the devices these and (`remove`) no others. What is there now, and what is wrong, a sentence each."""
        states, problems = [], []
        wanted = {tunnel.device: tunnel for tunnel in tunnels}
        for device, kind in KINDS.items():
            tunnel = wanted.get(device)
            try:
                if tunnel is not None:
                    states.append(self._make(tunnel))
                elif remove:
                    self._remove(device, kind)
            except (KernelError, _CannotBeError) as error:
                problems.append(str(error))
        return states, problems

    def left_behind(self) -> list[str]:
        """The devices that were made here. Raises KernelError."""
        found = ((device, self._find(device)) for device in VXLAN_DEVICES.values())
        return [device for device, link in found if link is not None and link.alias == ALIAS]

    def remove(self, device: str) -> None:
        """One of `left_behind`. Raises KernelError."""
        self._remove(device, KINDS[device])

    # ---- one device

    def _make(self, tunnel: Tunnel) -> DeviceState:
        what = f"the tunnel device {tunnel.device}"
        mtu = tunnel.mtu or self._uplink_mtu(tunnel.local) - tunnel_overhead(tunnel.kind, tunnel.family)
        if mtu < LEAST_MTU_OF_IPV6 and tunnel.family is Family.IPV6_UNICAST:
            least = LEAST_MTU_OF_IPV6 + tunnel_overhead(tunnel.kind, tunnel.family)
            remedy = "raise vxlanMTUV6" if tunnel.mtu else f"raise the uplink's to {least}"
            raise _CannotBeError(f"{what}: its MTU would be {mtu}, and IPv6 takes {LEAST_MTU_OF_IPV6}: {remedy}")
        link = self._find(tunnel.device)
        if link is not None and link.kind != tunnel.kind:
            raise KernelError(
                errno.EEXIST, f"an interface of another kind has this name ({link.kind or 'no tunnel'})", what
            )
        if link is not None and tunnel.kind is TunnelKind.VXLAN and _nature(link) != _wanted_nature(tunnel):
            self._kernel.ask(delete_link(self._kernel.next(), link.index), f"removing {what}")
            link = None
        if link is None:
            link = self._create(tunnel, mtu, what)
        kernel = self._kernel
        if link.mac != tunnel.mac and tunnel.kind is TunnelKind.VXLAN:
            # before anything is looked at: the kernel forgets the neighbours of a link with another MAC address
            kernel.ask(change_link(kernel.next(), link.index, mac=tunnel.mac), what)
        requests = []
        if link.mtu != mtu:
            requests.append(change_link(kernel.next(), link.index, mtu=mtu))
        requests += self._addresses(tunnel, link.index)
        if not link.enabled:
            requests.append(change_link(kernel.next(), link.index, up=True))
        if tunnel.kind is TunnelKind.VXLAN:
            requests += self._peers(tunnel, link.index)
        if requests:
            kernel.ask_all(requests, what)
        return DeviceState(tunnel, link.index, mtu)

    def _create(self, tunnel: Tunnel, mtu: int, what: str) -> TunnelLink:
        number = self._kernel.next()
        try:
            if tunnel.kind is TunnelKind.IPIP:
                self._kernel.ask(make_ipip(number, tunnel.device), what)
            else:
                self._kernel.ask(
                    make_vxlan(
                        number, name=tunnel.device, family=tunnel.family, mac=tunnel.mac, vni=tunnel.vni,
                        port=tunnel.port, local=tunnel.local, mtu=mtu,
                    ),
                    what,
                )  # fmt: skip
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise KernelError(
                    error.errno, f"the kernel has no {tunnel.kind.value}: load the module {tunnel.kind.value}", what
                ) from None
            if error.errno != errno.EEXIST:
                raise
        link = self._find(tunnel.device)
        if link is None:
            raise KernelError(errno.EEXIST, self._holder(tunnel), what)
        if tunnel.kind is TunnelKind.VXLAN:  # which no kernel takes with the device
            self._kernel.ask(change_link(self._kernel.next(), link.index, alias=ALIAS), what)
        return link

    def _holder(self, tunnel: Tunnel) -> str:
        """Who has what the kernel gives to one device only."""
        if tunnel.kind is TunnelKind.IPIP:
            return ""
        for message in self._kernel.dump(dump_links(self._kernel.next()), "reading interfaces"):
            link = decode_tunnel(message.data)
            if (
                link is not None
                and (link.kind, link.vni, link.port) == (tunnel.kind.value, tunnel.vni, tunnel.port)
                and len(link.local) in (0, len(tunnel.local))
            ):
                return (
                    f"{link_name(message.data)} has VNI {tunnel.vni} at port {tunnel.port}: remove it, or set another "
                    "vxlanVNI or vxlanPort in FelixConfiguration"
                )
        return ""

    def _remove(self, device: str, kind: TunnelKind) -> None:
        link = self._find(device)
        if link is None or link.kind != kind:
            return
        what = f"removing the tunnel device {device}"
        if kind is TunnelKind.VXLAN:
            self._kernel.ask(delete_link(self._kernel.next(), link.index), what)
            return
        # the kernel's own device cannot be removed
        requests = [
            remove_address(self._kernel.next(), link.index, Family.IPV4_UNICAST, each.address, each.length)
            for each in self._addresses_of(link.index)
            if len(each.address) == Family.IPV4_UNICAST.address_length
        ]
        if link.enabled:
            requests.append(change_link(self._kernel.next(), link.index, up=False))
        if requests:
            self._kernel.ask_all(requests, what)

    def _addresses(self, tunnel: Tunnel, index: int) -> list[bytes]:
        family = tunnel.family
        requests, there = [], False
        for each in self._addresses_of(index):
            if len(each.address) != family.address_length or _is_link_local(each.address):
                continue
            if each.address == tunnel.address and each.length == family.max_length:
                there = True
            else:
                requests.append(remove_address(self._kernel.next(), index, family, each.address, each.length))
        if not there:
            requests.insert(0, add_host_address(self._kernel.next(), index, family, tunnel.address))
        return requests

    def _peers(self, tunnel: Tunnel, index: int) -> list[bytes]:
        kernel, family = self._kernel, tunnel.family
        macs = {peer.mac: peer.address for peer in tunnel.peers}
        gateways = {peer.gateway: peer.mac for peer in tunnel.peers}
        requests, known = [], set()
        for entry in self._neighbours(None, index):
            if entry.permanent and macs.get(entry.mac) == entry.address:
                known.add(entry.mac)
            elif entry.mac not in macs and entry.address:
                requests.append(remove_forwarding(kernel.next(), index, entry.mac, entry.address))
        requests += [
            set_forwarding(kernel.next(), index, mac, address) for mac, address in macs.items() if mac not in known
        ]
        same = set()
        for entry in self._neighbours(family, index):
            if entry.permanent and gateways.get(entry.address) == entry.mac:
                same.add(entry.address)
            elif entry.permanent and entry.address not in gateways:
                requests.append(remove_neighbour(kernel.next(), index, family, entry.address))
        requests += [
            set_neighbour(kernel.next(), index, family, gateway, mac)
            for gateway, mac in gateways.items()
            if gateway not in same
        ]
        return requests

    # ---- looking

    def _find(self, device: str) -> TunnelLink | None:
        try:
            answers = self._kernel.ask(get_link(self._kernel.next(), device), f"interface {device}")
        except KernelError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return decode_tunnel(answers[0].data) if answers else None

    def _addresses_of(self, index: int) -> list[Address]:
        messages = self._kernel.dump(dump_addresses(self._kernel.next()), "reading addresses")
        found = (decode_address(message.data) for message in messages)
        return [each for each in found if each is not None and each.index == index]

    def _neighbours(self, family: Family | None, index: int) -> list[NeighbourEntry]:
        messages = self._kernel.dump(dump_neighbours(self._kernel.next(), family), "reading neighbours")
        found = (decode_neighbour(message.data) for message in messages)
        return [each for each in found if each is not None and each.index == index]

    def _uplink_mtu(self, local: bytes) -> int:
        """Of the interface with the node's address; where that is on the loopback, the smallest of real ones that are up."""
        links = {
            link.index: link for link in _links(self._kernel.dump(dump_links(self._kernel.next()), "reading links"))
        }
        addresses = self._kernel.dump(dump_addresses(self._kernel.next()), "reading addresses")
        for each in (decode_address(message.data) for message in addresses):
            link = links.get(each.index) if each is not None and each.address == local else None
            if link is not None and link.mtu and link.name != "lo":
                return link.mtu
        real = (
            link for link in links.values() if link.up and not any(re.fullmatch(each, link.name) for each in VIRTUAL)
        )
        return min((link.mtu for link in real if link.mtu), default=DEFAULT_MTU)


def tell(states: Iterable[DeviceState]) -> str:
    """For the log: `vxlan.calico 10.244.1.0, MTU 1450, 2 nodes`."""
    return "; ".join(
        f"{each.tunnel.device} {format_address(each.tunnel.address)}, MTU {each.mtu}, {len(each.tunnel.peers)} nodes"
        for each in states
    )


def _nature(link: TunnelLink) -> tuple[int, int, bytes, bool]:
    """What of a VXLAN device cannot change while it lives."""
    return link.vni, link.port, link.local, link.learning


def _wanted_nature(tunnel: Tunnel) -> tuple[int, int, bytes, bool]:
    return tunnel.vni, tunnel.port, tunnel.local, False


def _is_link_local(address: bytes) -> bool:
    return len(address) == Family.IPV6_UNICAST.address_length and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _links(messages: Iterable[Message]) -> Iterator[Link]:
    for message in messages:
        link = decode_link(message.data)
        if link is not None:
            yield link
