"""Which address is a node's BGP address: every method, on interfaces as machines have them."""

from __future__ import annotations

import pytest

from routed.errors import ConfigError
from routed.net.addresses import parse_address
from routed.net.families import Family
from routed.observed import Interface
from routed.plan.autodetect import Detected, detect, parse_method

V4, V6 = Family.IPV4_UNICAST, Family.IPV6_UNICAST


def interface(index: int, name: str, *addresses: str, up: bool = True) -> Interface:
    pairs = (each.split("/") for each in addresses)
    return Interface(index, name, up, tuple((parse_address(address), int(length)) for address, length in pairs))


MACHINE = (
    interface(1, "lo", "127.0.0.1/8", "::1/128", "192.0.2.9/32"),
    interface(2, "down0", "10.9.0.1/24", up=False),
    interface(3, "docker0", "172.17.0.1/16"),
    interface(7, "eth1", "10.2.0.1/24", "fd02::1/64"),
    interface(5, "eth0", "169.254.7.7/16", "10.0.0.1/24", "10.1.0.1/24", "fe80::1/64", "fd00::1/64"),
    interface(8, "cali123", "10.65.0.1/32"),
    interface(9, "bond0.7", "10.3.0.1/24"),
)
ROUTES = {"8.8.8.8": "10.2.0.1", "10.0.0.7": "10.0.0.1", "fd02::9": "fd02::1", "198.51.100.1": "203.0.113.1"}


def source_of(address: bytes) -> bytes | None:
    return {parse_address(to): parse_address(source) for to, source in ROUTES.items()}.get(address)


@pytest.mark.parametrize(
    ("method", "family", "found"),
    [
        ("first-found", V4, "10.0.0.1/24"),
        ("first-found", V6, "fd00::1/64"),
        ("interface=eth1", V4, "10.2.0.1/24"),
        ("interface=eth.*", V4, "10.0.0.1/24"),
        ("interface=bond0,eth1", V4, "10.3.0.1/24"),
        ("interface=bond0,eth1", V6, "fd02::1/64"),
        ("interface=lo", V4, "192.0.2.9/32"),
        ("interface=docker0", V4, "172.17.0.1/16"),
        ("skip-interface=eth0", V4, "10.2.0.1/24"),
        ("skip-interface=eth.*, bond", V4, None),
        ("cidr=10.1.0.0/16", V4, "10.1.0.1/24"),
        ("cidr=192.168.0.0/16,10.2.0.0/16", V4, "10.2.0.1/24"),
        ("cidr=10.1.0.0/16,fd02::/16", V6, "fd02::1/64"),
        ("cidr=10.9.0.0/16", V4, None),
        ("can-reach=8.8.8.8", V4, "10.2.0.1/24"),
        ("can-reach=10.0.0.7", V4, "10.0.0.1/24"),
        ("can-reach=fd02::9", V6, "fd02::1/64"),
        ("can-reach=fd02::9", V4, None),
        ("can-reach=192.0.2.77", V4, None),
        ("can-reach=198.51.100.1", V4, None),
    ],
)
def test_methods(method: str, family: Family, found: str | None):
    answer = detect(parse_method(method), family, MACHINE, source_of)
    if found is None:
        assert isinstance(answer, str) and answer
    else:
        assert isinstance(answer, Detected) and str(answer) == found


@pytest.mark.parametrize(
    ("method", "passing", "found"),
    [
        ("first-found", ("fd00::1",), "fd02::1/64"),
        ("interface=eth0", ("fd00::1", "fd02::1"), "fd00::1/64"),
        ("interface=eth0,eth1", ("fd00::1",), "fd02::1/64"),
        ("cidr=fd00::/16,fd02::/16", ("fd00::1",), "fd02::1/64"),
        ("first-found", ("fd00::1", "fd02::1"), "fd00::1/64"),
    ],
)
def test_an_address_that_passes_is_taken_only_where_there_is_no_other(
    method: str, passing: tuple[str, ...], found: str
):
    answer = detect(parse_method(method), V6, MACHINE, source_of, {parse_address(each) for each in passing})
    assert str(answer) == found


def test_nothing_found_says_where_it_looked():
    assert detect(parse_method("cidr=10.99.0.0/16"), V4, MACHINE, source_of) == (
        "no IPv4 address was found by cidr=10.99.0.0/16; interfaces that are up: lo, docker0, eth0, eth1, cali123, bond0.7"
    )
    assert "interfaces that are up: none" in str(detect(parse_method("first-found"), V4, (), source_of))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no way to find an address"),
        ("first-found=", "no way to find an address"),
        ("interface", "no way to find an address"),
        ("interface=", "no way to find an address"),
        ("kubernetes-internal-ip=x", "no way to find an address"),
        ("interface=eth(", "not a regular expression"),
        ("cidr=10.0.0.1/24", "host bits"),
        ("cidr=", "no way to find an address"),
        ("can-reach=example.org", "names are not looked up"),
    ],
)
def test_methods_that_are_none(text: str, words: str):
    with pytest.raises(ConfigError, match=words):
        parse_method(text)
