"""The benchmark itself works: every scenario runs in small, and its verifying run finds what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from routed.model.ipam import IPAMBlock
from routed.model.paths import Layout
from routed.testing.lab import Lab
from routed.testing.routers import missing
from tests.bench import datastore, packets, pods, policies
from tests.bench.__main__ import BEGIN, DOCUMENT, END, QUICK, STANDARD, main
from tests.bench.contenders import CONTENDERS, peer_address
from tests.bench.scenarios import KINDS, Scenario, Wrong, build, measure, verify

SMALL = {
    "transit": "transit:2000",
    "fib": "fib:1000",
    "withdraw": "withdraw:1000",
    "mesh": "mesh:5x100",
    "rr": "rr:5x100",
    "latency": "latency:100",
}

lab = [
    pytest.mark.lab,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
]


@pytest.mark.parametrize("text", [*STANDARD, *QUICK, *SMALL.values()])
def test_scenarios_read_as_they_are_written(text: str) -> None:
    scenario = Scenario.parse(text)
    assert f"{scenario.kind}:{'x'.join(map(str, scenario.numbers))}" == text
    assert scenario.work.peers >= scenario.senders


@pytest.mark.parametrize("text", ["", "transit", "transit:0", "transit:5x5", "rr:5", "rr:1x5", "rr:5x", "walk:5"])
def test_what_is_no_scenario_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="is no scenario"):
        Scenario.parse(text)


def test_peers_have_addresses_of_their_own() -> None:
    assert len({peer_address(index) for index in range(2000)}) == 2000


def test_the_table_has_its_place_in_the_documentation() -> None:
    text = Path(DOCUMENT).read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)


def test_the_large_cluster_holds_what_calico_would_write() -> None:
    written = {path: json.dumps(value).encode() for path, value in datastore.keys(5, 20, 2)}
    decoded = [Layout().decode(path, value) for path, value in written.items()]
    assert all(one is not None and not one.unknown for one in decoded)
    resources = [one.resource for one in decoded if one is not None]
    assert len({one.key for one in resources}) == len(resources) == 5 + 2 * 20 + 3
    blocks = [one for one in resources if isinstance(one, IPAMBlock)]
    assert {len(block.unallocated) for block in blocks} == {62} and {block.host for block in blocks} == {
        f"node-{number}" for number in range(5)
    }


class TestInSmall:
    pytestmark = lab

    @pytest.mark.parametrize("kind", KINDS)
    def test_routed_does_the_right_thing(self, kind: str) -> None:
        assert verify(CONTENDERS["routed"], Scenario.parse(SMALL[kind]))

    def test_a_run_is_measured(self) -> None:
        result = measure(CONTENDERS["routed"], Scenario.parse("withdraw:1000"))
        assert result.seconds > 0
        assert result.peak_mib > 5

    @pytest.mark.skipif(bool(missing("bird")), reason="needs BIRD")
    def test_a_daemon_that_does_something_else_is_found_out(self) -> None:
        # on a shared subnet BIRD passes on the sender's next hop (RFC 4271 5.1.3 allows both)
        with pytest.raises(Wrong, match="NEXT_HOP"):
            verify(CONTENDERS["bird"], Scenario.parse("transit:100"))

    @pytest.mark.skipif(bool(missing("bird")), reason="needs BIRD")
    def test_the_program_prints_a_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--daemons", "bird,routed", "--rounds", "1", "rr:4x50"]) == 0
        out = capsys.readouterr().out
        assert "| scenario | BIRD 2" in out
        assert "| rr 4 x 50 |" in out
        assert "announcements right" in out

    @pytest.mark.etcd
    def test_a_cluster_is_followed_and_each_change_of_every_round_is_told(self) -> None:
        rounds = datastore.measure(nodes=10, blocks=40, pods=2, count=20, rounds=2)
        assert [each["keys read"] for each in rounds] == [10 + 40 + 4 + 3] * 2
        assert all(
            each[f"processor time of a change: {kind} (ms)"] > 0
            for each in rounds
            for kind in datastore.KINDS_OF_CHANGE
        )

    def test_what_policy_costs_a_packet_is_measured(self) -> None:
        made = packets.measure(20, 1, 5, 1 << 20, ipv6=False)
        assert len(packets.table(made).splitlines()) == 2 + len(made) == 10
        assert all(seconds > 0 for each in made for seconds in (*each.connection, *each.stream))

    @pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (Debian: nftables)")
    @pytest.mark.etcd
    @pytest.mark.parametrize("etcd", [False, True])
    def test_the_real_daemon_is_measured_with_policies(self, monkeypatch: pytest.MonkeyPatch, etcd: bool) -> None:
        monkeypatch.setattr(policies, "SETTLED", 0.0)
        made = policies.of_daemon(pods=120, policies=30, etcd=etcd)
        assert len(made) == 6
        assert (
            0 < made["daemon: table complete, processor time (s)"] <= made["daemon: processor time after 5 s more (s)"]
        )
        assert made["daemon: resident then (MiB)"] > 10

    @pytest.mark.skipif(not Path(pods.PLUGINS, "ptp").exists(), reason="needs Debian's containernetworking-plugins")
    @pytest.mark.etcd
    def test_what_pods_cost_is_measured(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert pods.main(["--count", "1", "--rate", "10", "--seconds", "1", "--datastores", "file,etcd"]) == 0
        out = capsys.readouterr().out
        for datastore_name in ("file", "etcd"):
            for name in ("ptp + host-local", "routed (c)", "routed (python)"):
                assert re.search(
                    rf"^{datastore_name}: {re.escape(name)}: ADD [0-9.]+ ms .*; DEL [0-9.]+ ms", out, re.M
                ), out
            assert re.search(
                rf"^{datastore_name}: 10 pods in [0-9.]+ s: .*; nothing left [0-9.]+ s after .*: daemon [0-9.]+",
                out,
                re.M,
            ), out

    def test_the_load_generator_compiles_without_a_warning(self) -> None:
        with Lab() as made:
            assert Path(build(made.folder)).exists()
