"""nf_tables messages on a real kernel: what we write is what `nft` reads, in one transaction or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from routed.dataplane.table_socket import TableSocket
from routed.netlink import nft_expressions as nft
from routed.netlink.messages import Message, messages, parse_error
from routed.netlink.nft_expressions import Base, Compare, CtState, Meta, Verdict
from routed.netlink.nftables import (
    INTERFACE_NAME,
    IPV4_ADDRESS,
    IPV6_ADDRESS,
    NETLINK_NETFILTER,
    PORT,
    PROTOCOL,
    Batch,
    ChainFound,
    Element,
    ElementFound,
    Hook,
    Priority,
    RuleFound,
    SetShape,
    concatenation,
    decode_chain,
    decode_elements,
    decode_generation,
    decode_rule,
    decode_set,
    dump_chains,
    dump_elements,
    dump_rules,
    dump_sets,
    get_generation,
)
from routed.netlink.numbers import NLMSG_DONE, NLMSG_ERROR
from routed.testing.lab import Lab, Namespace

pytestmark = pytest.mark.lab

IPV4 = nft.meta(Meta.NFPROTO) + nft.compare(bytes([nft.NFPROTO_IPV4]))
IPV6 = nft.meta(Meta.NFPROTO) + nft.compare(bytes([nft.NFPROTO_IPV6]))
TCP = nft.meta(Meta.L4PROTO) + nft.compare(b"\x06")
DPORT = nft.payload(Base.TRANSPORT, 2, 2)
SADDR4, DADDR4 = nft.payload(Base.NETWORK, 12, 4), nft.payload(Base.NETWORK, 16, 4)


class Nft:
    """A namespace's nf_tables, through a socket of ours."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        with namespace.entered():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.settimeout(60)
        self._socket.bind((0, 0))

    def commit(self, batch: Batch) -> list[tuple[int, int]]:
        """(number of the message, errno) of every refusal."""
        self._socket.send(batch.encode())
        refused = []
        answered = -1
        while answered not in (0, len(batch)):  # the first of all is about the batch as such
            for message in messages(self._socket.recv(1 << 20)):
                assert message.type == NLMSG_ERROR
                answered = message.sequence
                if error := parse_error(message).errno:
                    refused.append((answered, error))
        return refused

    def ask(self, question: bytes) -> list[Message]:
        self._socket.send(question)
        found = []
        while True:
            for message in messages(self._socket.recv(1 << 20)):
                if message.type in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                found.append(message)
                if decode_generation(message) is not None:
                    return found

    def generation(self) -> int:
        (found,) = [decode_generation(message) for message in self.ask(get_generation(1))]
        assert found is not None
        return found

    def ruleset(self) -> str:
        return re.sub(r"\s+", " ", self.namespace.run("nft", "list", "ruleset"))

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def kernel() -> Iterator[Nft]:
    with Lab() as lab, contextlib.closing(Nft(lab.namespace("node"))) as opened:
        yield opened


def new_table() -> Batch:
    batch = Batch("routed")
    batch.add_table("made by a test")
    return batch


@pytest.mark.parametrize(
    ("expressions", "text"),
    [
        (
            nft.ct_state()
            + nft.bitwise(struct.pack("=I", CtState.ESTABLISHED | CtState.RELATED))
            + nft.compare(bytes(4), Compare.NOT_EQUAL)
            + nft.verdict(Verdict.ACCEPT),
            "ct state established,related accept",
        ),
        (
            nft.ct_state()
            + nft.bitwise(struct.pack("=I", CtState.INVALID))
            + nft.compare(bytes(4), Compare.NOT_EQUAL)
            + nft.counter()
            + nft.verdict(Verdict.DROP),
            "ct state invalid counter packets 0 bytes 0 drop",
        ),
        (
            nft.meta(Meta.IIFNAME)
            + nft.compare(b"cali")
            + nft.fib_source_present()
            + nft.compare(bytes(4))
            + nft.verdict(Verdict.DROP),
            'iifname "cali*" fib saddr . iif oif missing drop',
        ),
        (
            nft.meta(Meta.OIFNAME)
            + nft.compare(b"eth0".ljust(16, b"\x00"), Compare.NOT_EQUAL)
            + nft.verdict(Verdict.RETURN),
            'oifname != "eth0" return',
        ),
        (
            nft.fib_destination_type() + nft.compare(struct.pack("=I", 2)) + nft.verdict(Verdict.ACCEPT),
            "fib daddr type local accept",
        ),
        (
            IPV4 + SADDR4 + nft.compare(bytes([10, 0, 0, 1])) + TCP + DPORT
            + nft.in_range(b"\x00\x50", b"\x00\x5a") + nft.verdict(Verdict.RETURN),
            "ip saddr 10.0.0.1 tcp dport 80-90 return",
        ),
        (
            IPV4 + DADDR4 + nft.bitwise(b"\xff\xff\xf0\x00") + nft.compare(bytes([10, 1, 16, 0]))
            + nft.verdict(Verdict.DROP),
            "ip daddr 10.1.16.0/20 drop",
        ),
        (
            IPV6 + nft.payload(Base.NETWORK, 8, 16) + nft.compare(bytes(15) + b"\x01") + nft.verdict(Verdict.ACCEPT),
            "ip6 saddr ::1 accept",
        ),
        (
            nft.limit(10, 5) + nft.log(7, "denied", 128),
            'limit rate 10/second log prefix "denied" group 7 snaplen 128',
        ),
        (nft.immediate(struct.pack("=I", 4)) + nft.set_mark(), "meta mark set 0x00000004"),
        (nft.meta(Meta.L4PROTO) + nft.compare(b"\x11") + nft.reject_port_unreachable(), "meta l4proto udp reject"),
        (nft.meta(Meta.IIF) + nft.compare(struct.pack("=I", 1)) + nft.verdict(Verdict.GOTO, "other"), 'iif "lo" goto other'),
        (nft.verdict(Verdict.JUMP, "other"), "jump other"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_nft_reads_a_rule_as_it_was_meant(kernel: Nft, expressions: bytes, text: str):
    batch = new_table()
    batch.add_chain("other")
    batch.add_base_chain("chain", "filter", Hook.PREROUTING, Priority.RAW)
    batch.add_rule("chain", expressions, "why")
    assert kernel.commit(batch) == []
    assert f'policy accept; {text} comment "why" }}' in kernel.ruleset()


@pytest.mark.parametrize(
    ("kind", "hook", "priority", "expressions", "text"),
    [
        (
            "nat", Hook.POSTROUTING, Priority.SOURCE_NAT,
            IPV4 + SADDR4 + nft.lookup("pools") + DADDR4 + nft.lookup("pools", inverted=True)
            + nft.masquerade(fully_random=True),
            "ip saddr @pools ip daddr != @pools masquerade fully-random",
        ),
        (
            "nat", Hook.POSTROUTING, Priority.SOURCE_NAT,
            IPV4 + nft.immediate(bytes([192, 0, 2, 1])) + nft.source_nat(nft.NFPROTO_IPV4),
            "snat ip to 192.0.2.1",
        ),
        ("nat", Hook.POSTROUTING, Priority.SOURCE_NAT, nft.masquerade(), "masquerade"),
        ("filter", Hook.PREROUTING, Priority.RAW, nft.no_track(), "notrack"),
    ],
)  # fmt: skip
def test_nft_reads_translation_as_it_was_meant(
    kernel: Nft, kind: str, hook: Hook, priority: Priority, expressions: bytes, text: str
):
    batch = new_table()
    batch.add_set("pools", SetShape(IPV4_ADDRESS, interval=True))
    batch.add_base_chain("chain", kind, hook, priority)
    batch.add_rule("chain", expressions)
    assert kernel.commit(batch) == []
    assert text in kernel.ruleset()


def test_sets_and_maps(kernel: Nft):
    batch = new_table()
    batch.add_chain("target")
    shapes = {
        "hosts": SetShape(IPV4_ADDRESS),
        "blocks": SetShape(IPV6_ADDRESS, interval=True),
        "ports": SetShape(PORT, interval=True),
        "named": SetShape(concatenation(IPV4_ADDRESS, PROTOCOL, PORT)),
        "interfaces": SetShape(INTERFACE_NAME, verdicts=True),
    }
    for name, shape in shapes.items():
        batch.add_set(name, shape)
    batch.add_elements("hosts", [Element(bytes([10, 0, 0, 7]))])
    batch.add_elements("blocks", [Element(b"\xfd" + bytes(15), b"\xfe" + bytes(15)), Element(b"\xff" + bytes(15), b"")])
    batch.add_elements("ports", [Element(b"\x00\x50", b"\x00\x5b")])
    batch.add_elements("named", [Element(bytes([10, 0, 0, 7]) + b"\x06\x00\x00\x00" + b"\x00\x50\x00\x00")])
    batch.add_elements("interfaces", [Element(b"cali1".ljust(16, b"\x00"), verdict=(Verdict.JUMP, "target"))])
    assert kernel.commit(batch) == []
    ruleset = kernel.ruleset()
    for text in (
        "set hosts { type ipv4_addr elements = { 10.0.0.7 } }",
        "set blocks { type ipv6_addr flags interval elements = { fd00::/8, ff00::/8 } }",
        "set ports { type inet_service flags interval elements = { 80-90 } }",
        "set named { type ipv4_addr . inet_proto . inet_service elements = { 10.0.0.7 . tcp . 80 } }",
        'map interfaces { type ifname : verdict elements = { "cali1" : jump target } }',
    ):
        assert text in ruleset
    sets = {
        each.name: each for message in kernel.ask(dump_sets("routed", 1)) if (each := decode_set(message, "routed"))
    }
    assert sets.keys() == shapes.keys() and all(sets[name].has(shape) for name, shape in shapes.items())
    assert not sets["hosts"].has(shapes["blocks"]) and not sets["ports"].has(shapes["hosts"])
    found = [one for message in kernel.ask(dump_elements("routed", "ports", 1)) for one in decode_elements(message)]
    assert sorted(found) == [ElementFound(b"\x00\x50"), ElementFound(b"\x00\x5b", end=True)]
    ways = [one for message in kernel.ask(dump_elements("routed", "interfaces", 1)) for one in decode_elements(message)]
    assert ways == [ElementFound(b"cali1".ljust(16, b"\x00"), verdict=(Verdict.JUMP, "target"))]


def test_more_elements_than_one_message_holds(kernel: Nft):
    members = [Element(struct.pack(">I", 0x0A000000 + number)) for number in range(5000)]
    batch = new_table()
    batch.add_set("hosts", SetShape(IPV4_ADDRESS))
    batch.add_elements("hosts", members)
    assert kernel.commit(batch) == []
    change = Batch("routed")
    change.delete_elements("hosts", members[:4990])
    assert kernel.commit(change) == []
    listed = kernel.ask(dump_elements("routed", "hosts", 1))
    found = {each.key for message in listed for each in decode_elements(message)}
    assert found == {element.key for element in members[4990:]}


def test_all_or_nothing_and_the_refusal_is_named(kernel: Nft):
    assert kernel.commit(new_table()) == []
    batch = Batch("routed")
    batch.add_chain("one")
    wrong = batch.add_rule("nowhere", nft.counter())
    batch.add_chain("two")
    assert kernel.commit(batch) == [(wrong, errno.ENOENT)]
    assert kernel.ask(dump_chains("routed", 1)) == []


def test_a_change_by_somebody_else_is_noticed(kernel: Nft):
    assert kernel.commit(new_table()) == []
    generation = kernel.generation()
    kernel.namespace.run("nft", "add", "table", "ip", "theirs")
    assert kernel.generation() != generation
    batch = Batch("routed", generation)
    batch.add_chain("one")
    assert errno.ERESTART in {error for _, error in kernel.commit(batch)}
    assert kernel.ask(dump_chains("routed", 1)) == []


def test_a_batch_is_taken_whose_answers_would_not_fit_into_the_socket(kernel: Nft):
    with kernel.namespace.entered():
        table = TableSocket("routed")
    try:
        with socket.socket(fileno=os.dup(table._socket.fileno())) as small:
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        batch = new_table()
        batch.add_chain("chain")
        for number in range(2000):
            batch.add_rule("chain", nft.counter(), f"rule {number}")
        assert table.commit(batch) is None
        assert len(table.read(dump_rules("routed", 1), decode_rule)) == 2000
        refused = Batch("routed")
        for number in range(2000):
            refused.add_rule("chain" if number != 1234 else "nowhere", nft.counter())
        refusal = table.commit(refused)
        assert refusal is not None and refusal.text.startswith("No such file or directory")
        assert len(table.read(dump_rules("routed", 1), decode_rule)) == 2000
    finally:
        table.close()


def test_what_is_read_back(kernel: Nft):
    batch = new_table()
    batch.add_base_chain("out", "filter", Hook.OUTPUT, Priority.FILTER)
    batch.add_rule("out", nft.counter() + nft.verdict(Verdict.DROP), "policy x")
    assert kernel.commit(batch) == []
    kernel.namespace.run("ping", "-n", "-c", "1", "-W", "0.1", "127.0.0.1", check=False)
    assert [decode_chain(message, "routed") for message in kernel.ask(dump_chains("routed", 1))] == [
        ChainFound("out", "filter", Hook.OUTPUT, Priority.FILTER)
    ]
    (rule,) = [decode_rule(message, "routed") for message in kernel.ask(dump_rules("routed", 1))]
    assert rule is not None
    assert replace(rule, expressions=b"") == RuleFound("out", rule.handle, "policy x", 1, 84)
    again = Batch("routed")
    again.flush_chain("out")
    assert kernel.commit(again) == []
    assert kernel.ask(dump_rules("routed", 1)) == []
    gone = Batch("routed")
    gone.delete_chain("out")
    gone.delete_table()
    assert kernel.commit(gone) == []
    assert kernel.ruleset().strip() == ""


def test_what_a_message_is_not():
    other = Message(0, 0, 0, 0, bytes(24))
    assert decode_chain(other, "routed") is decode_rule(other, "routed") is None
    assert decode_generation(other) is decode_set(other, "routed") is None
    assert list(decode_elements(other)) == []
