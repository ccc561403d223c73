"""Whether the node passes packets on: turned on where it is off, and told where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from routed.dataplane.forwarding import forward, not_forwarding, translates_on_bridges
from routed.net.families import Family

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, value in (
        ("ipv4/ip_forward", "0"), ("ipv6/conf/all/forwarding", "0"), ("ipv6/conf/all/accept_ra", "1"),
        ("ipv6/conf/eth0/accept_ra", "1"), ("ipv6/conf/lo/accept_ra", "0"),
    ):  # fmt: skip
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value + "\n")
    return tmp_path


def read(root: Path, path: str) -> str:
    return (root / path).read_text().strip()


def test_it_is_turned_on_and_interfaces_go_on_hearing_routers(root: Path):
    assert len(not_forwarding((V4, V6), str(root))) == 2
    changed, problems = forward((V4, V6), str(root))
    assert changed == [
        "net.ipv4.ip_forward = 1",
        "net.ipv6.conf.eth0.accept_ra = 2",
        "net.ipv6.conf.all.forwarding = 1",
    ]
    assert problems == [] and not_forwarding((V4, V6), str(root)) == []
    assert read(root, "ipv6/conf/eth0/accept_ra") == "2" and read(root, "ipv6/conf/lo/accept_ra") == "0"
    assert forward((V4, V6), str(root)) == ([], [])


def test_only_the_families_asked_for(root: Path):
    assert forward((V4,), str(root))[0] == ["net.ipv4.ip_forward = 1"]
    assert read(root, "ipv6/conf/all/forwarding") == "0"


def test_a_kernel_without_a_family_lacks_nothing(root: Path):
    (root / "ipv6/conf/all/forwarding").unlink()
    assert forward((V6,), str(root)) == ([], []) and not_forwarding((V6,), str(root)) == []
    (said,) = not_forwarding((V4,), str(root))
    assert said.endswith("no packet passes between pods and other nodes: sysctl -w net.ipv4.ip_forward=1")


def test_what_has_bridges_translate_is_named_where_it_is_there_and_on(root: Path):
    assert translates_on_bridges(str(root)) == "", "br_netfilter is not loaded"
    (root / "bridge").mkdir()
    for name, value in (("iptables", "1"), ("ip6tables", "0"), ("arptables", "1")):
        (root / f"bridge/bridge-nf-call-{name}").write_text(f"{value}\n")
    said = translates_on_bridges(str(root))
    assert said.startswith("net.bridge.bridge-nf-call-iptables is 1, so a pod at a bridge reaches no Service")
    assert "sysctl -w net.bridge.bridge-nf-call-iptables=0," in said and "ip6tables" not in said
    (root / "bridge/bridge-nf-call-ip6tables").write_text("1\n")
    assert "sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0," in (
        translates_on_bridges(str(root))
    )
    for name in ("iptables", "ip6tables"):
        (root / f"bridge/bridge-nf-call-{name}").write_text("0\n")
    assert translates_on_bridges(str(root)) == ""
