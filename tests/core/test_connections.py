"""What is remembered of connections that ended or were refused, and for how many."""

from __future__ import annotations

import pytest

from routed.core import connections as module
from routed.core.connections import Connections, Refusals, Refused
from routed.net.addresses import parse_address


def test_last_words_are_kept_for_the_latest_and_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST_WORDS", 2)
    connections = Connections()
    for _ in range(3):
        connections.close(connections.allocate(), b"cease")
    connections.close(connections.allocate(), b"")
    assert [connections.last_words(conn) for conn in (1, 2, 3, 4)] == [b"", b"cease", b"cease", b""]
    assert connections.last_words(3) == b""


def test_the_addresses_refused_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSED_KEPT", 2)
    refusals = Refusals()
    one, two, three = (parse_address(f"10.0.0.{last}") for last in (1, 2, 3))
    for at, remote in enumerate((one, two, one, three)):
        refusals.add(remote, "no peer", float(at))
    assert refusals.latest == {one: Refused(2, 2.0, "no peer"), three: Refused(1, 3.0, "no peer")}
    assert refusals.total == 4
    refusals.forget(one)
    refusals.add(one, "no peer", 4.0)
    assert refusals.latest[one].count == 1
