"""What pods ask of the rest of the daemon."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from routed.daemon.pod_mtu import Uplink
from routed.daemon.workloads import Workloads
from routed.errors import StoreError
from routed.net.families import Family
from routed.observed import Interface

OWN_IPV4, OWN_IPV6 = b"\x0a\x09\x09\x01", b"\xfd" + b"\x00" * 14 + b"\x01"


def test_an_api_that_takes_the_question_and_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said after some seconds, in status too, until it answers again."""
    monkeypatch.setattr("routed.daemon.workloads.API", 0.05)
    answers = asyncio.Event()

    class Api:
        async def get(self, path: str) -> dict[str, str]:
            await answers.wait()
            return {"path": path}

    here: Any = SimpleNamespace(_kubernetes=Api(), _api_problem="")
    here._api_answers = lambda what: Workloads._api_answers(here, what)

    async def work() -> None:
        with pytest.raises(StoreError, match="the Kubernetes API has not answered"):
            await Workloads.pod(here, "shop", "web")
        assert "has not answered" in here._api_problem
        answers.set()
        assert await Workloads.pod(here, "shop", "web") == {"path": "/api/v1/namespaces/shop/pods/web"}
        assert here._api_problem == ""

    asyncio.run(work())


@pytest.mark.parametrize(
    ("node_address_on", "mtu"),
    [("eth1", 9000), ("lo", 1400), ("dummy0", 1500)],
)
def test_the_uplink_of_a_node_whose_address_is_on_the_loopback(node_address_on: str, mtu: int) -> None:
    """The smallest of the real interfaces that are up counts, not the loopback's 65536, and not pods' own."""
    mtus = {"lo": 65536, "eth0": 1400, "eth1": 9000, "eth2": 1300, "cali0123456789a": 1200, "dummy0": 1500}
    interfaces = {
        index: Interface(index, name, name != "eth2", ((OWN_IPV4, 32),) if name == node_address_on else ())
        for index, name in enumerate(mtus, 1)
    }
    here: Any = SimpleNamespace(
        _core=SimpleNamespace(
            interfaces=interfaces,
        ),
        _followed={index for index, each in interfaces.items() if each.addresses},
        _wiring=SimpleNamespace(mtu_of=mtus.get),
    )
    uplink = Workloads._uplink(here, OWN_IPV4)
    assert uplink.mtu == mtu and mtus[uplink.name] == mtu
    here._followed = set()
    assert Workloads._uplink(here, OWN_IPV4) == Uplink("", 1500)


@pytest.mark.parametrize(
    ("own_ipv4", "own_ipv6", "expected"),
    [
        (OWN_IPV4, OWN_IPV6, (9000, 1400)),
        (OWN_IPV4, b"", (9000, 9000)),
        (b"", OWN_IPV6, (1400, 1400)),
        (OWN_IPV4, b"\xfd" * 16, (9000, 9000)),
        (b"", b"", (1500, 1500)),
    ],
)
def test_the_two_families_may_leave_by_different_uplinks(
    own_ipv4: bytes, own_ipv6: bytes, expected: tuple[int, int]
) -> None:
    mtus = {"eth0": 9000, "eth1": 1400}
    interfaces = {
        1: Interface(1, "eth0", True, ((OWN_IPV4, 24),)),
        2: Interface(2, "eth1", True, ((OWN_IPV6, 64),)),
    }
    here: Any = SimpleNamespace(
        _core=SimpleNamespace(
            plan=SimpleNamespace(speaker=SimpleNamespace(ipv4_address=own_ipv4, ipv6_address=own_ipv6)),
            interfaces=interfaces,
        ),
        _followed=set(interfaces),
        _wiring=SimpleNamespace(mtu_of=mtus.get),
    )
    here._uplink = lambda address: Workloads._uplink(here, address)
    uplinks = Workloads._uplinks(here)
    assert (uplinks[Family.IPV4_UNICAST].mtu, uplinks[Family.IPV6_UNICAST].mtu) == expected
