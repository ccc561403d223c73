"""Whether the node passes packets on at all: without it no pod reaches another node, and nobody reaches the pod.

For a node whose pods are routed's, as Felix does for Calico's. Nothing is restored at the end: pods outlive the daemon.

Invariant: nothing here raises where the kernel says no; what could not be done comes back as sentences.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from routed.net.families import Family

ROOT = "/proc/sys/net"

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
