"""Whether the node passes packets on at all: without it no pod reaches another node, and nobody reaches the pod.

For a node whose pods are routed's, as Felix does for Calico's. Nothing is restored at the end: pods outlive the daemon.

Invariant: nothing here raises where the kernel says no; what could not be done comes back as sentences.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from routed.net.families import Family

ROOT = "/proc/sys/net"

#: What br_netfilter, where it is loaded, asks before it hands frames on a bridge to rules for IP packets.
_OF_BRIDGES = ("bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables")

_SWITCHES = {Family.IPV4_UNICAST: "ipv4/ip_forward", Family.IPV6_UNICAST: "ipv6/conf/all/forwarding"}


def forward(families: Iterable[Family], root: str = ROOT) -> tuple[list[str], list[str]]:
    """Turn it on where it is off: what was changed, and what could not be, for people.

    An IPv6 interface that forwards no longer hears router advertisements, by which it may have its own default route:
    those that did go on hearing them (accept_ra 2).
    """
    changed: list[str] = []
    problems: list[str] = []
    for family in families:
        switch = os.path.join(root, _SWITCHES[family])
        if _read(switch) != "0":  # on, or a kernel without the family
            continue
        hearing = list(_hearing(root)) if family is Family.IPV6_UNICAST else []
        for path, value in (*((each, "2") for each in hearing), (switch, "1")):
            name = "net." + os.path.relpath(path, root).replace("/", ".")
            try:
                with open(path, "w", encoding="ascii") as file:
                    file.write(value)
            except OSError as error:
                problems.append(f"{name} cannot be set to {value}: {error.strerror}")
            else:
                changed.append(f"{name} = {value}")
    return changed, problems


def not_forwarding(families: Iterable[Family], root: str = ROOT) -> list[str]:
    """What keeps packets of these families from being passed on now, for people."""
    found = []
    for family in families:
        if _read(os.path.join(root, _SWITCHES[family])) == "0":
            name = "net." + _SWITCHES[family].replace("/", ".")
            found.append(f"{name} is 0, so no packet passes between pods and other nodes: sysctl -w {name}=1")
    return found


def filters_sources(root: str = ROOT) -> str:
    """Why the kernel lets no interface have IPv4 sources that are not reached by it, or empty."""
    if _read(os.path.join(root, "ipv4/conf/all/rp_filter")) != "1":
        return ""
    return (
        "net.ipv4.conf.all.rp_filter is 1, so what pods send from allowSpoofedSourcePrefixes is dropped: "
        "sysctl -w net.ipv4.conf.all.rp_filter=0"
    )


def translates_on_bridges(root: str = ROOT) -> str:
    """Why a pod at a bridge does not reach its neighbours there by a translated address, or empty.

    br_netfilter translates the destination while the frame is on the bridge, finds that the bridge itself is the way out,
    and sends the frame on to the other port, which is isolated; the node never routes it.
    """
    on = ["net." + each.replace("/", ".") for each in _OF_BRIDGES if _read(os.path.join(root, each)) not in ("", "0")]
    if not on:
        return ""
    return (
        f"{' and '.join(on)} {'is' if len(on) == 1 else 'are'} 1, so a pod at a bridge reaches no Service and no host port "
        f"whose pod is at the same bridge: sysctl -w {' '.join(f'{each}=0' for each in on)}, or attach pods without a bridge"
    )


def _hearing(root: str) -> Iterator[str]:
    folder = os.path.join(root, "ipv6/conf")
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name, "accept_ra")
        if name != "all" and _read(path) == "1":
            yield path


def _read(path: str) -> str:
    """Empty where there is no such file."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
