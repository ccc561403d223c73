"""What we send, as ExaBGP reads it: an independent decoder, run as a program of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from routed.bgp.attributes import AttributeSet, encode_attributes, prepend
from routed.bgp.update import reach_message, withdraw_message
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.net.prefixes import parse_prefix

EXABGP = Path(sys.executable).with_name("exabgp")

pytestmark = pytest.mark.skipif(not EXABGP.exists(), reason="exabgp is not installed in this environment")

V4 = Family.IPV4_UNICAST
V6 = Family.IPV6_UNICAST

ATTRS = AttributeSet(
    as_path=prepend(prepend(b"", 4200000000), 65001, 2),
    med=5,
    local_pref=77,
    aggregator=(70000, bytes((1, 2, 3, 4))),
    communities=bytes.fromhex("fde80001"),
    large_communities=bytes(11) + b"\1",
    originator_id=0x0A000001,
    cluster_list=bytes((10, 0, 0, 9)),
)
TOLD = {
    "origin": "igp",
    "as-path": {"0": {"element": "as-sequence", "value": [65001, 65001, 4200000000]}},
    "med": 5,
    "local-preference": 77,
    "aggregator": "70000:1.2.3.4",
    "community": [[65000, 1]],
    "large-community": [[0, 0, 1]],
    "originator-id": "10.0.0.1",
    "cluster-list": ["10.0.0.9"],
}


def read_by_exabgp(message: bytes) -> Any:
    run = subprocess.run(
        [EXABGP, "decode", message.hex().upper()], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(run.stdout)["neighbor"]["message"]["update"]


@pytest.mark.parametrize(
    ("family", "next_hop", "prefixes"),
    [(V4, "10.0.0.1", ["20.0.1.64/26", "0.0.0.0/0"]), (V6, "2001:db8::1", ["2001:db8::/48", "2001:db8:1::/122"])],
)
def test_announcement(family: Family, next_hop: str, prefixes: list[str]) -> None:
    attrs = ATTRS.replace(next_hop=parse_address(next_hop))
    block = encode_attributes(attrs, four_octet_as=True, family=family, include_local_pref=True)
    nlri = b"".join(parse_prefix(text)[1] for text in prefixes)
    name = "ipv4 unicast" if family is V4 else "ipv6 unicast"
    assert read_by_exabgp(reach_message(family, block, attrs.next_hop, nlri)) == {
        "attribute": TOLD,
        "announce": {name: {next_hop: [{"nlri": text} for text in prefixes]}},
    }


@pytest.mark.parametrize(("family", "prefix"), [(V4, "20.0.1.64/26"), (V6, "2001:db8::/48")])
def test_withdrawal(family: Family, prefix: str) -> None:
    name = "ipv4 unicast" if family is V4 else "ipv6 unicast"
    told = read_by_exabgp(withdraw_message(family, parse_prefix(prefix)[1]))
    assert told == {"withdraw": {name: [{"nlri": prefix}]}}
