"""Members of sets against the obvious, whatever comes and goes."""

from __future__ import annotations

import ipaddress
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from routed.net.families import Family
from routed.net.prefixes import format_prefix, parse_prefix
from routed.policy.members import Difference, Members, Networks

NETS = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/9",
    "10.128.0.0/9",
    "10.0.0.0/32",
    "10.0.0.1/32",
    "192.0.2.0/24",
    "192.0.2.7/32",
]
STEPS = st.lists(st.tuples(st.booleans(), st.sampled_from(NETS), st.booleans()), max_size=30)


@given(STEPS)
def test_networks_show_what_nothing_else_holds(steps: list[tuple[bool, str, bool]]):
    networks, given_by, told = Networks(Family.IPV4_UNICAST), Counter[str](), set[bytes]()
    difference = Difference()
    for adds, net, takes in steps:
        prefix = parse_prefix(net)[1]
        if adds:
            networks.add(prefix, difference)
            given_by[net] += 1
        elif given_by[net]:
            networks.remove(prefix, difference)
            given_by[net] -= 1
        if takes:
            assert not difference.added & told and difference.removed <= told
            told = (told | difference.added) - difference.removed
            difference = Difference()
        here = [ipaddress.ip_network(net) for net, count in given_by.items() if count]
        expected = {str(net) for net in here if not any(net != other and net.subnet_of(other) for other in here)}
        assert {format_prefix(Family.IPV4_UNICAST, prefix) for prefix in networks.shown} == expected
    assert (told | difference.added) - difference.removed == networks.shown


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([b"a", b"b"]))))
def test_members_are_there_while_somebody_gives_them(steps: list[tuple[bool, bytes]]):
    members, counts, difference = Members(), Counter[bytes](), Difference()
    for adds, member in steps:
        if adds:
            members.add(member, difference)
            counts[member] += 1
        elif counts[member]:
            members.remove(member, difference)
            counts[member] -= 1
        assert members.shown == {member for member, count in counts.items() if count} == difference.added
        assert not difference.removed


def test_a_block_list_of_thousands_costs_each_network_its_own_only():
    """Which a test can only see by ending: it took minutes when each network was held against all others."""
    networks, difference = Networks(Family.IPV6_UNICAST), Difference()
    nets = [b"\x30" + (number * 7919 % 20_000).to_bytes(6, "big") for number in range(20_000)]
    for net in nets:
        networks.add(net, difference)
    assert networks.shown == difference.added == set(nets)
    all_of_them, told = b"\x10\x00\x00", Difference()
    networks.add(all_of_them, told)
    assert networks.shown == told.added == {all_of_them} and told.removed == set(nets)
    networks.remove(all_of_them, told)
    assert networks.shown == set(nets) and not told
    for net in nets:
        networks.remove(net, difference)
    assert not networks.shown and not difference
