"""What a node's interfaces are asked: by name, by network, by next hop; after changes in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routed.core.interfaces import Interfaces
from routed.net.addresses import parse_address
from routed.observed import Interface, KernelChange
from routed.plan.types import Speaker


def interface(index: int, name: str, *addresses: str, up: bool = True) -> Interface:
    networks = (address.split("/") for address in addresses)
    return Interface(index, name, up, tuple((parse_address(each), int(length)) for each, length in networks))


def interfaces(*there: Interface) -> Interfaces:
    found = Interfaces()
    found.apply(KernelChange(full=True, interfaces=there))
    return found


def test_an_interface_that_is_renamed_leaves_its_name() -> None:
    found = interfaces(interface(2, "eth0"))
    before = found.apply(KernelChange(interfaces=(interface(2, "wan0"),)))
    assert before == {2: interface(2, "eth0")}
    assert (found.up("eth0"), found.up("wan0")) == (0, 2)


def test_the_longest_network_leads_to_a_neighbor_then_the_one_with_the_own_address() -> None:
    found = interfaces(
        interface(2, "eth0", "10.0.0.1/16"),
        interface(3, "eth1", "10.0.0.2/24"),
        interface(4, "eth2", "10.0.0.3/24"),
        interface(5, "eth3", "10.0.0.4/28", up=False),
    )
    remote = parse_address("10.0.0.9")
    assert found.connected(remote, parse_address("10.0.0.2")) == 3
    assert found.connected(remote, parse_address("10.0.0.3")) == 4
    assert found.connected(parse_address("10.0.9.9"), b"") == 2
    assert found.connected(parse_address("fd00::9"), b"") == 0


def test_a_session_is_scoped_by_the_name_it_was_given_or_by_its_own_address() -> None:
    found = interfaces(interface(2, "eth0", "fe80::1/64"), interface(3, "eth1", "fe80::2/64"))
    assert found.scope("eth0", parse_address("fe80::2")) == 2
    assert found.scope("", parse_address("fe80::2")) == 3
    assert found.scope("", parse_address("fe80::3")) == 0


def test_an_address_of_the_node_on_no_interface_is_named() -> None:
    speaker = Speaker(64512, 1, 179, ipv4_address=parse_address("10.0.0.1"), ipv6_address=parse_address("fd00::1"))
    found = interfaces(interface(2, "eth0", "10.0.0.1/24"))
    assert found.without_address("n1", speaker) == ("Node n1: spec.bgp.ipv6Address fd00::1 is on no interface here",)
    assert interfaces().without_address("n1", speaker) == ()
    assert found.without_address("n1", None) == ()


INTERFACES = st.builds(interface, st.integers(1, 4), st.sampled_from(["eth0", "eth1", "cali1"]), up=st.booleans())
CHANGES = st.builds(
    KernelChange,
    full=st.booleans(),
    interfaces=st.lists(INTERFACES, max_size=3, unique_by=lambda each: each.index).map(tuple),
    interfaces_removed=st.lists(st.integers(1, 4), max_size=2, unique=True).map(tuple),
)


@given(st.lists(CHANGES, max_size=8))
def test_what_was_told_last_of_an_index_counts(changes: list[KernelChange]) -> None:
    found, expected = Interfaces(), dict[int, Interface]()
    for change in changes:
        told = {each.index: each for each in change.interfaces}
        gone = {*expected} if change.full else {*change.interfaces_removed, *told}
        then = {index: each for index, each in expected.items() if index not in gone} | told
        if len({each.name for each in then.values()}) < len(then):
            continue  # a kernel has no two of one name
        assert found.apply(change) == {index: each for index, each in expected.items() if index in gone}
        expected = then
        assert dict(found) == expected
        for name in ("eth0", "eth1", "cali1"):
            assert found.up(name) == next((index for index, each in then.items() if each.up and each.name == name), 0)
