"""Resources and what etcd holds of them: both ways, and what is none of ours."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.errors import ConfigError
from routed.model.ipam import IPAMBlock, IPAMConfig
from routed.model.paths import Layout, encode
from routed.model.resources import AffinityState, AffinityType, BlockAffinity, Cidr, JsonObject, ResourceKey
from routed.model.schema import KIND_TABLE, KINDS, parse_manifest
from routed.net.families import Family
from routed.net.prefixes import make_prefix, parse_prefix, prefix_address
from tests.model.examples import BLOCK, EXAMPLES, manifest, named
from tests.model.test_schema import ALL

CALICO = Layout()
RESOURCES = "/calico/resources/v3/projectcalico.org/"
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True).filter(
    lambda name: ".." not in name and ".-" not in name and "-." not in name
)
BLOCKS = st.one_of(
    st.tuples(st.just(Family.IPV4_UNICAST), st.binary(min_size=4, max_size=4), st.integers(24, 32)),
    st.tuples(st.just(Family.IPV6_UNICAST), st.binary(min_size=16, max_size=16), st.integers(120, 128)),
).map(lambda one: Cidr(one[0], make_prefix(one[1], one[2])))


@given(BLOCKS, st.binary(min_size=16, max_size=16), st.integers(0, 16))
def test_all_blocks_that_overlap_with_one_are_among_the_keys_near_it(block: Cidr, bits: bytes, size: int) -> None:
    """Larger ones around it, and smaller ones inside."""
    inside, length = prefix_address(*block), block.family.max_length
    mask = (1 << length - block.prefix[0]) - 1
    at = int.from_bytes(inside) | int.from_bytes(bits) & mask
    other = Cidr(block.family, make_prefix(at.to_bytes(len(inside)), length - size))
    assert other.overlaps(block) and block.overlaps(other)
    first, end = CALICO.keys_near(block)
    spelt = str(other).replace("/", "-")
    family = "ipv4" if block.family is Family.IPV4_UNICAST else "ipv6"
    assert first <= f"/calico/ipam/v2/assignment/{family}/block/{spelt}" < end


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("Node", RESOURCES + "nodes/node-1"),
        ("BGPPeer", RESOURCES + "bgppeers/tor-a"),
        ("BGPFilter", RESOURCES + "bgpfilters/all-of-it"),
        ("BGPConfiguration", RESOURCES + "bgpconfigurations/default"),
        ("IPPool", RESOURCES + "ippools/default"),
        ("IPReservation", RESOURCES + "ipreservations/default"),
        ("ClusterInformation", RESOURCES + "clusterinformations/default"),
        ("FelixConfiguration", RESOURCES + "felixconfigurations/default"),
        ("CalicoNodeStatus", RESOURCES + "caliconodestatuses/any"),
        ("KubeControllersConfiguration", RESOURCES + "kubecontrollersconfigurations/default"),
        ("Tier", RESOURCES + "tiers/security"),
        ("Profile", RESOURCES + "profiles/kns.shop"),
        ("NetworkPolicy", RESOURCES + "networkpolicies/shop/db"),
        ("GlobalNetworkPolicy", RESOURCES + "globalnetworkpolicies/security.db"),
        ("StagedNetworkPolicy", RESOURCES + "stagednetworkpolicies/shop/db"),
        ("StagedGlobalNetworkPolicy", RESOURCES + "stagedglobalnetworkpolicies/x"),
        ("StagedKubernetesNetworkPolicy", RESOURCES + "stagedkubernetesnetworkpolicies/shop/x"),
        ("NetworkSet", RESOURCES + "networksets/shop/db"),
        ("GlobalNetworkSet", RESOURCES + "globalnetworksets/default"),
        ("WorkloadEndpoint", RESOURCES + "workloadendpoints/shop/node--1-k8s-web--0-eth0"),
        ("HostEndpoint", RESOURCES + "hostendpoints/node-1-eth0"),
        ("BlockAffinity", "/calico/ipam/v2/virtual/node-1/ipv4/block/10.244.1.0-26"),
        ("IPAMBlock", "/calico/ipam/v2/assignment/ipv4/block/10.244.1.0-30"),
        ("IPAMHandle", "/calico/ipam/v2/handle/k8s-pod-network.Ab_12"),
        ("IPAMConfig", "/calico/ipam/v2/config"),
    ],
)
def test_calico_s_paths(kind: str, path: str) -> None:
    resource = parse_manifest(ALL[kind])
    assert CALICO.path(resource) == path
    assert any(path.startswith(prefix) for prefix in CALICO.kind_prefixes(kind))
    assert Layout("/other").path(resource) == "/other" + path.removeprefix("/calico")
    key = CALICO.parse_path(path)
    assert key is not None
    assert key.kind == kind
    assert Layout("/other").parse_path(path) is None


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    """Through etcd and back nothing is lost, and a second time nothing changes."""
    resource = parse_manifest(ALL[kind])
    decoded = CALICO.decode(CALICO.path(resource), encode(resource))
    assert decoded is not None
    assert decoded.unknown == ()
    assert decoded.resource.key == (resource.key if kind != "BlockAffinity" else decoded.resource.key)
    assert encode(decoded.resource) == encode(resource)
    assert CALICO.path(decoded.resource) == CALICO.path(resource)
    again = CALICO.decode(CALICO.path(resource), encode(decoded.resource))
    assert again == decoded


@given(
    st.sampled_from([kind for kind in KINDS if kind not in ("BlockAffinity", "IPAMBlock", "IPAMConfig")]), NAMES, NAMES
)
def test_keys_round_trip(kind: str, name: str, namespace: str) -> None:
    known = KIND_TABLE[kind]
    place = f"{namespace}/" if known.namespaced else ""
    path = CALICO.kind_prefixes(kind)[0] + place + name
    key = CALICO.parse_path(path)
    tiered = kind.endswith("NetworkPolicy") and not kind.startswith(("Kube", "StagedKube"))
    stripped = name.removeprefix("default.") if tiered else name
    assert key == ResourceKey(kind, stripped or name, namespace if known.namespaced else "")


@given(st.sampled_from(AffinityType), NAMES, BLOCKS, st.sampled_from(AffinityState), st.booleans())
def test_affinity_round_trip(kind: AffinityType, node: str, cidr: Cidr, state: AffinityState, deleted: bool) -> None:
    affinity = BlockAffinity(name="x", node=node, cidr=cidr, type=kind, state=state, deleted=deleted)
    path = CALICO.path(affinity)
    assert path.startswith(CALICO.affinity_prefix(node)) is (kind is AffinityType.HOST)
    decoded = CALICO.decode(path, encode(affinity))
    assert decoded is not None
    found = decoded.resource
    assert isinstance(found, BlockAffinity)
    assert (found.node, found.cidr, found.type, found.state, found.deleted) == (node, cidr, kind, state, deleted)
    assert found.key == CALICO.parse_path(path)


@given(BLOCKS, st.integers(0, (1 << 64) - 1), st.integers(0, 9))
def test_block_round_trip(cidr: Cidr, sequence: int, seed: int) -> None:
    random = Random(seed)
    size = 1 << cidr.family.max_length - cidr.prefix[0]
    taken = [random.random() < 0.3 for _ in range(size)]
    value: JsonObject = {
        "cidr": str(cidr),
        "affinity": None,
        "allocations": [0 if one else None for one in taken],
        "unallocated": [at for at, one in enumerate(taken) if not one][:100],
        "attributes": [{"handle_id": "h", "secondary": {}}],
        "sequenceNumber": sequence,
        "sequenceNumberForAllocation": {str(at): sequence for at, one in enumerate(taken[:50]) if one},
        "deleted": False,
        "fieldOfTomorrow": {"kept": [1, None]},
    }
    family = "ipv4" if cidr.family is Family.IPV4_UNICAST else "ipv6"
    path = f"/calico/ipam/v2/assignment/{family}/block/{str(cidr).replace('/', '-')}"
    decoded = CALICO.decode(path, json.dumps(value).encode())
    assert decoded is not None
    assert [error.path for error in decoded.unknown] == ["spec.fieldOfTomorrow"]
    block = decoded.resource
    assert isinstance(block, IPAMBlock)
    assert (block.cidr, block.sequence_number, block.host) == (cidr, sequence, None)
    assert CALICO.path(block) == path
    assert json.loads(encode(block)) == value


@given(st.text("/calioresurv3pjt.gnd", max_size=60))
def test_other_paths_are_none(path: str) -> None:
    assert CALICO.parse_path(path) is None or path.startswith(RESOURCES)


@pytest.mark.parametrize(
    "path",
    [
        RESOURCES + "networkpolicies/x",
        RESOURCES + "networkpolicies/a/b/c",
        RESOURCES + "nodes/",
        RESOURCES + "nodes/a/b",
        RESOURCES + "livemigrations/a/b",
        RESOURCES + "blockaffinities/x",
        "/calico/v1/Ready",
        "/calico/ipam/v2/host/node-1",
        "/calico/ipam/v2/host/node-1/ipv4/block/10.244.1.0-33",
        "/calico/ipam/v2/host/node-1/ipv6/block/10.244.1.0-26",
        "/calico/ipam/v2/assignment/ipv6/block/10.244.1.0-26",
        "/calico/felix/v2/no-region/host/node-1/status",
    ],
)
def test_not_ours(path: str) -> None:
    assert CALICO.parse_path(path) is None
    assert CALICO.decode(path, b"{}") is None


@pytest.mark.parametrize(
    ("value", "state", "is_confirmed"),
    [
        (b"", AffinityState.CONFIRMED, True),
        (b"{}", AffinityState.CONFIRMED, True),
        (b'{"state":"confirmed","deleted":false}', AffinityState.CONFIRMED, True),
        (b'{"state":"pending","deleted":false}', AffinityState.PENDING, False),
        (b'{"state":"confirmed","deleted":true}', AffinityState.CONFIRMED, False),
    ],
)
def test_affinity_value(value: bytes, state: AffinityState, is_confirmed: bool) -> None:
    decoded = CALICO.decode("/calico/ipam/v2/host/node-1/ipv4/block/10.244.1.0-26", value)
    assert decoded is not None
    affinity = decoded.resource
    assert isinstance(affinity, BlockAffinity)
    assert affinity.key == ResourceKey("BlockAffinity", "node-1-10-244-1-0-26")
    assert affinity.cidr == Cidr(*parse_prefix("10.244.1.0/26"))
    assert (affinity.node, affinity.state, affinity.is_confirmed) == ("node-1", state, is_confirmed)


@pytest.mark.parametrize(
    ("value", "strict", "auto"),
    [
        (b"{}", False, False),
        (b'{"strict_affinity":true}', True, False),
        (b'{"strict_affinity":false,"auto_allocate_blocks":true,"maxBlocksPerHost":0}', False, True),
    ],
)
def test_a_boolean_left_out_of_the_allocator_s_settings_is_false(value: bytes, strict: bool, auto: bool) -> None:
    decoded = CALICO.decode("/calico/ipam/v2/config", value)
    assert decoded is not None
    assert isinstance(decoded.resource, IPAMConfig)
    assert (decoded.resource.strict_affinity, decoded.resource.auto_allocate_blocks) == (strict, auto)
    assert json.loads(encode(decoded.resource)) == json.loads(value)


@pytest.mark.parametrize(
    ("stored", "annotations", "name"),
    [
        ("db", {}, "db"),
        ("default.db", {}, "db"),
        ("security.db", {}, "security.db"),
        ("knp.default.db", {}, "knp.default.db"),
        ("default.db-1x", {"projectcalico.org/metadata": '{"name":"db"}'}, "db"),
        ("default.db", {"projectcalico.org/metadata": "not JSON"}, "db"),
    ],
)
def test_the_three_forms_of_a_policy_s_name(stored: str, annotations: dict[str, str], name: str) -> None:
    policy = named("NetworkPolicy", "shop", stored, {"selector": "all()"})
    policy["metadata"] = {"name": stored, "namespace": "shop", "annotations": annotations}
    decoded = CALICO.decode(f"{RESOURCES}networkpolicies/shop/{stored}", json.dumps(policy).encode())
    assert decoded is not None
    assert decoded.resource.key == ResourceKey("NetworkPolicy", name, "shop")


@pytest.mark.parametrize(
    ("name", "path"), [("db", "default.db"), ("default.db", "default.db"), ("knp.default.x", "knp.default.x")]
)
def test_older_calico_s_policy_names(name: str, path: str) -> None:
    policy = parse_manifest(named("NetworkPolicy", "shop", name, {"selector": "all()"}))
    assert CALICO.path(policy, old_policy_names=True) == f"{RESOURCES}networkpolicies/shop/{path}"


def test_unknown_fields_are_reported_and_kept() -> None:
    """A newer Calico's Node is used, and written back with what we do not know."""
    node = manifest("Node", {"bgp": {"ipv4Address": "10.0.0.1/24", "tomorrow": {"a": [1]}}}, name="n")
    decoded = CALICO.decode(RESOURCES + "nodes/n", json.dumps(node).encode())
    assert decoded is not None
    assert [error.path for error in decoded.unknown] == ["spec.bgp.tomorrow"]
    assert json.loads(encode(decoded.resource)) == node
    with pytest.raises(ConfigError, match="is not a field known here"):
        parse_manifest(node)


@pytest.mark.parametrize(
    ("kind", "field"),
    [("BGPFilter", "spec.exportV4[0].asPathLength"), ("NetworkPolicy", "spec.ingress[0].source.tomorrow")],
)
def test_a_condition_we_do_not_know_is_refused_whoever_wrote_it(kind: str, field: str) -> None:
    """Left out, the rule would match more than its writer meant."""
    copied = json.loads(json.dumps(ALL[kind]))
    spot = copied["spec"]["exportV4"][0] if kind == "BGPFilter" else copied["spec"]["ingress"][0]["source"]
    spot[field.rpartition(".")[2]] = 1
    with pytest.raises(ConfigError) as caught:
        CALICO.decode(CALICO.path(parse_manifest(ALL[kind])), json.dumps(copied).encode())
    assert caught.value.path == field


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (RESOURCES + "nodes/n", b"", ""),
        (RESOURCES + "nodes/n", b"\xff\xfe", ""),
        (RESOURCES + "nodes/n", b"[" * 100_000, ""),
        (RESOURCES + "nodes/n", b'{"a":NaN}', ""),
        (RESOURCES + "nodes/n", b'{"a":' * 201 + b"1" + b"}" * 201, ""),
        ("/calico/ipam/v2/assignment/ipv4/block/10.244.2.0-30", b'{"a":' * 201 + b"1" + b"}" * 201, ""),
        (RESOURCES + "nodes/n", json.dumps(manifest("Node", {}, name="m")).encode(), "metadata.name"),
        (RESOURCES + "nodes/default", json.dumps(manifest("BGPConfiguration", {})).encode(), "metadata.name"),
        ("/calico/ipam/v2/config", b"7", ""),
        ("/calico/ipam/v2/assignment/ipv4/block/10.244.2.0-30", json.dumps(BLOCK).encode(), "cidr"),
    ],
)
def test_garbage_is_refused_in_words(path: str, value: bytes, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CALICO.decode(path, value)
    assert caught.value.path == field


@given(st.sampled_from(sorted(EXAMPLES)), st.binary(max_size=40))
def test_any_octets_are_decoded_or_refused(kind: str, value: bytes) -> None:
    try:
        decoded = CALICO.decode(CALICO.path(parse_manifest(EXAMPLES[kind])), value)
    except ConfigError:
        return
    assert decoded is not None


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        (("IPAMBlock", "10-244-1-0-26"), ["ipam/v2/assignment/ipv4/block/10.244.1.0-26"]),
        (("IPAMBlock", "fd00---122"), ["ipam/v2/assignment/ipv6/block/fd00::-122"]),
        (("IPAMBlock", "no-block"), []),
        (("IPAMHandle", "net.abc"), ["ipam/v2/handle/net.abc"]),
        (("IPAMConfig", "default"), ["ipam/v2/config"]),
        (("BlockAffinity", "node-1-10-244-1-0-26"), ["ipam/v2/host/node-1/ipv4/block/10.244.1.0-26"]),
        (("IPPool", "pods"), ["resources/v3/projectcalico.org/ippools/pods"]),
    ],
)
def test_where_a_key_may_be(key: tuple[str, str], paths: list[str]):
    assert Layout().candidate_paths(ResourceKey(*key)) == [f"/calico/{path}" for path in paths]


def test_every_reading_of_an_affinity_s_name_is_tried():
    paths = Layout().candidate_paths(ResourceKey("BlockAffinity", "a-fd00---122"))
    assert "/calico/ipam/v2/host/a/ipv6/block/fd00::-122" in paths
    for path in paths:
        key = Layout().parse_path(path)
        assert key is not None and key.name == "a-fd00---122"


def test_policies_are_looked_for_under_both_names():
    paths = Layout().candidate_paths(ResourceKey("NetworkPolicy", "web", "shop"))
    start = "/calico/resources/v3/projectcalico.org/networkpolicies/shop/"
    assert paths == [f"{start}web", f"{start}default.web"]
