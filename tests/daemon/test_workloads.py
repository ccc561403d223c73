"""What pods ask of the rest of the daemon."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from routed.daemon.pod_mtu import Uplink
from routed.daemon.workloads import Workloads
from routed.errors import StoreError
from routed.observed import Interface


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
        index: Interface(index, name, name != "eth2", ((b"\x0a\x09\x09\x01", 32),) if name == node_address_on else ())
        for index, name in enumerate(mtus, 1)
    }
    here: Any = SimpleNamespace(
        _core=SimpleNamespace(
            plan=SimpleNamespace(speaker=SimpleNamespace(ipv4_address=b"\x0a\x09\x09\x01", ipv6_address=b"")),
            interfaces=interfaces,
        ),
        _followed={index for index, each in interfaces.items() if each.addresses},
        _wiring=SimpleNamespace(mtu_of=mtus.get),
    )
    uplink = Workloads._uplink(here)
    assert uplink.mtu == mtu and mtus[uplink.name] == mtu
    here._followed = set()
    assert Workloads._uplink(here) == Uplink("", 1500)
