"""What routed brings for sysctl and systemd-networkd, read by the programs it is for: a real networkd, a real kernel."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from package.deb import SYSTEMD
from routed.testing.lab import Lab, Namespace, Process, run, wait_for
from routed.testing.service import Root
from tests.house.rooms import ROOT

SOON = 30.0
NETWORKD = "/usr/lib/systemd/systemd-networkd"
SYSCTL = "/usr/lib/systemd/systemd-sysctl"

pytestmark = pytest.mark.skipif(not os.path.exists(NETWORKD), reason="systemd-networkd is not installed")

#: What an administrator has, or a distribution: every interface gets an address by DHCP, and has none else.
CATCH_ALL = "[Match]\nName=*\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"


def node(lab: Lab, name: str) -> tuple[Namespace, Root]:
    made, other = lab.namespace(name), lab.namespace(f"{name}-pod")
    lab.link(made.port("cali1", "169.254.1.1/32"), other.port("eth0", "10.244.1.1/32"))
    lab.link(made.port("eth0"), other.port("eth1"))
    root = Root(made)
    for path in root.host_path("/etc/systemd/network").glob("*"):
        path.unlink()
    root.host_path("/etc/systemd/network/50-eth0.network").write_text(
        CATCH_ALL.replace("Name=*", "Name=eth0").replace("DHCP=ipv4", "Address=10.0.0.1/24")
    )
    root.host_path("/etc/systemd/network/90-all.network").write_text(CATCH_ALL)
    root.run("sh", "-c", "mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp")
    # without udev networkd waits for it, unless /sys can't be written: then it takes the place for a container
    root.run("sh", "-c", "chown -R systemd-network: /run/systemd/netif; mount -o remount,bind,ro /sys")
    made.ip(
        "route add 10.244.1.1/32 dev cali1",
        "route add 192.0.2.0/24 dev eth0 proto 120",
        "rule add from 10.9.0.0/16 lookup 100 proto 120",
    )
    return made, root


def start(root: Root) -> Process:
    argv = ("env", "SYSTEMD_LOG_LEVEL=debug", "SYSTEMD_LOG_TARGET=console", NETWORKD)
    networkd = root.namespace.start("networkd", *root.command(*argv))
    wait_for(
        lambda: "eth0: State changed: configuring -> configured" in networkd.text(), SOON, "eth0", state=networkd.text
    )
    return networkd


def install(root: Root) -> None:
    for source, target in SYSTEMD.items():
        if "networkd" in source or source.endswith(".network"):
            place = root.host_path(f"/{target}")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "systemd" / source, place)


def test_networkd_leaves_alone_what_is_ours(lab: Lab) -> None:
    made, root = node(lab, "kept")
    install(root)
    networkd = start(root)
    wait_for(lambda: "cali1: Unmanaging interface" in networkd.text(), SOON, "cali1 is let alone", state=networkd.text)
    said = networkd.text()
    assert "Received new foreign route" not in said and "Remembering foreign routing policy rule" not in said
    assert "cali1: DHCPv4" not in said
    assert made.routes(protocol=120) == {"192.0.2.0/24": "dev eth0 scope link"}
    assert "10.244.1.1" in made.routes()
    assert "lookup 100" in made.run("ip", "rule")
    addresses = made.run("ip", "addr", "show", "dev", "cali1")
    assert "169.254.1.1/32" in addresses and "inet6 fe80::" in addresses


def test_without_it_networkd_would_not(lab: Lab) -> None:
    """So each of the two files is needed."""
    made, root = node(lab, "lost")
    networkd = start(root)
    for line in ("Received new foreign route", "Remembering foreign routing policy rule"):
        wait_for(lambda line=line: line in networkd.text(), SOON, line, state=networkd.text)  # type: ignore[misc]
    wait_for(lambda: "cali1: DHCPv4 client: DISCOVER" in networkd.text(), SOON, "it asks the pod for an address")
    wait_for(lambda: "inet6" not in made.run("ip", "addr", "show", "dev", "cali1"), SOON, "its own address is gone")


@pytest.mark.skipif(not os.path.exists(SYSCTL), reason="systemd-sysctl is not installed")
def test_the_kernel_takes_the_settings(lab: Lab) -> None:
    """Those of a network namespace; the limits of the neighbour tables are the whole machine's, and exist there."""
    made = lab.namespace("settings")
    made.run(SYSCTL, str(ROOT / "systemd" / "90-routed.conf"), check=False)
    checked = 0
    for line in (ROOT / "systemd" / "90-routed.conf").read_text().splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or line.startswith("#") or "gc_thresh" in key:
            continue
        path = Path("/proc/sys", *key.split("."))
        assert made.run("cat", str(path)).strip() == value, key
        checked += 1
    assert checked >= 10
    assert run("ls", "/proc/sys/net/ipv4/neigh/default/gc_thresh3")
