"""Blocks that are found right without being read."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.errors import ConfigError
from routed.model import paths
from routed.model.ipam import IPAMBlock
from routed.model.paths import Layout, decode_at, encode, read_text
from routed.model.resources import Cidr, JsonObject, JsonValue, ResourceKey
from routed.model.unread import UnreadBlock, plain_block
from routed.net.prefixes import parse_prefix

PATH = "/calico/ipam/v2/assignment/ipv4/block/10.244.1.0-30"
CIDR = Cidr(*parse_prefix("10.244.1.0/30"))
KEY = ResourceKey("IPAMBlock", "10-244-1-0-30")
BLOCK: Mapping[str, JsonValue] = {
    "cidr": "10.244.1.0/30",
    "affinity": "host:node-1",
    "affinity_claim_time": "2026-01-01 00:00:00 +0000 UTC",
    "allocations": [0, None, 1, None],
    "unallocated": [3, 1],
    "attributes": [
        {"handle_id": "k8s-pod-network.1", "secondary": {"node": "node-1"}},
        {"handle_id": None, "secondary": None, "alternateOwnerAttrs": {"node": "b"}, "releasedAt": "2026"},
    ],
    "deleted": False,
    "sequenceNumber": (1 << 64) - 1,
    "sequenceNumberForAllocation": {"0": 7, "2": (1 << 64) - 1},
}


def octets(value: JsonValue) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def read(value: bytes, monkeypatch: pytest.MonkeyPatch) -> IPAMBlock:
    """What the reader makes of it."""
    with monkeypatch.context() as patch:
        patch.setattr(paths, "plain_block", lambda *_: None)
        found = Layout().decode(PATH, value)
    assert found is not None and isinstance(found.resource, IPAMBlock)
    return found.resource


OTHER = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 5), st.sampled_from([65535, 65536, 1 << 63, 1 << 64, 1.0, 1e400]),
    st.sampled_from(["", "host:a", "virtual:b", "other:c", "3", "04", "\u0663", "10.244.1.0/30", "10.244.1.0/26", "\ud800"]),
    st.just([]), st.just({}), st.lists(st.integers(-1, 5), max_size=4), st.just({"node": 1}), st.just({"1": 2}),
    st.just([None, 1, 2, 3, None]),
)  # fmt: skip


@st.composite
def changed(
    draw: st.DrawFn, plain: Mapping[str, JsonValue] = BLOCK, other: st.SearchStrategy[JsonValue] = OTHER
) -> JsonObject:
    """A value with one to three things other than they should be, or just otherwise."""
    block: JsonObject = copy.deepcopy(dict(plain))
    for _ in range(draw(st.integers(1, 3))):
        target: JsonValue = block
        while isinstance(target, (dict, list)) and target:
            keys = list(target) if isinstance(target, dict) else list(range(len(target)))
            extra = ["unknownField", "hostAffinity", "affinityClaimTime"] if isinstance(target, dict) else []
            key = draw(st.sampled_from([*keys, *extra]))
            inner = target.get(key) if isinstance(target, dict) else target[key]  # type: ignore[index, arg-type]
            if not inner or not isinstance(inner, (dict, list)) or draw(st.booleans()):
                if key in keys and draw(st.booleans()):
                    del target[key]  # type: ignore[arg-type]
                else:
                    target[key] = copy.deepcopy(draw(other))  # type: ignore[index, call-overload]
                break
            target = inner
    return block


@given(changed())
def test_what_is_found_right_is_what_the_reader_reads_and_the_reader_takes_it(block: JsonObject) -> None:
    value = json.dumps(block, separators=(",", ":")).encode()
    found = plain_block(value, "10-244-1-0-30", CIDR, "10.244.1.0/30")
    if found is None:
        return
    with pytest.MonkeyPatch.context() as monkeypatch:
        whole = read(value, monkeypatch)
    assert not isinstance(whole, UnreadBlock)
    for name in ("key", "cidr", "affinity", "deleted", "host", "labels"):
        assert getattr(found, name) == getattr(whole, name)
    assert found.nodes_of_addresses() == whole.nodes_of_addresses()
    assert found == whole and whole == found and found.manifest == whole.manifest and repr(found) == repr(whole)
    assert read_text(KEY, found.manifest_text()) == whole == read_text(KEY, whole.manifest_text())


def test_an_ordinary_block_is_not_read_until_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Layout().place(PATH)
    assert place is not None
    found = decode_at(place, octets(dict(BLOCK))).resource
    assert isinstance(found, UnreadBlock) and found._whole is None
    again = decode_at(place, octets(dict(reversed(BLOCK.items())))).resource
    assert found.says_the_same(again) and found._whole is None
    other = decode_at(place, octets(dict(BLOCK) | {"affinity": "host:node-2"})).resource
    assert not found.says_the_same(other) and found.host == "node-1"
    assert found.unallocated == (3, 1) and found.attributes[0].handle_id == "k8s-pod-network.1"
    assert found.owner(2) is None, "it was given back"
    assert json.loads(encode(found)) == BLOCK
    whole = read(octets(dict(BLOCK)), monkeypatch)
    assert whole == found and hash(whole) == hash(found) and whole.says_the_same(found) and found.says_the_same(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"allocations": [0]}, {"unallocated": [0]}, {"unallocated": [1, 1]}, {"cidr": "10.244.1.0/31"},
        {"affinity": "pod:x"}, {"sequenceNumber": 1 << 64}, {"sequenceNumberForAllocation": {"4": 1}},
        {"sequenceNumberForAllocation": {"1" * 5000: 1}},
        {"allocations": [0, None, 1, 65536]}, {"attributes": [{"handle_id": 7}]}, {"deleted": "perhaps"},
    ],
)  # fmt: skip
def test_what_is_wrong_is_still_told_by_the_reader(change: JsonObject) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        Layout().decode(PATH, octets(dict(BLOCK) | change))


@pytest.mark.parametrize("written", ["10.244.1.1/30", "10.244.1.0/030", "010.244.1.0/30"])
def test_another_spelling_is_not_taken(written: str) -> None:
    value = octets(dict(BLOCK) | {"cidr": written})
    assert plain_block(value, written.translate(str.maketrans("./", "--"))) is None


def test_text_that_is_no_block_of_ours_is_read_like_any() -> None:
    text = plain_block(octets(dict(BLOCK)), "10-244-1-0-30")
    assert text is not None
    for before, after in ((b'"spec":', b'"spek":'), (b'"name":"10', b'"name":"11')):
        with pytest.raises((ConfigError, ValueError)):
            raise_unless_same(text.manifest_text().replace(before, after))


def raise_unless_same(text: bytes) -> None:
    found = read_text(KEY, text)
    if isinstance(found, UnreadBlock):
        raise AssertionError("it was taken without a look")
    raise ValueError(found.name)
