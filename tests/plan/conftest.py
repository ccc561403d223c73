"""A cluster as text: resources in YAML go in, plans come out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from routed.bgp.attributes import AttributeSet
from routed.model.resources import ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.net.addresses import format_address
from routed.net.prefixes import format_prefix, parse_prefix
from routed.plan.planner import Planner
from routed.plan.types import Plan, PlanSettings
from routed.rib.filters import FilterVerdict
from routed.rib.path import Path, Source, SourceKind

NODES = """
- {kind: Node, metadata: {name: kube-master}, spec: {bgp: {ipv4Address: 10.192.0.2/16, ipv6Address: "fd5f::2/64"}}}
- {kind: Node, metadata: {name: kube-node-1}, spec: {bgp: {ipv4Address: 10.192.0.3/16, ipv6Address: "fd5f::3/64"}}}
- {kind: Node, metadata: {name: kube-node-2}, spec: {bgp: {ipv4Address: 10.192.0.10/16}}}
"""


class Scenario:
    """A planner and the resources it was given, seen from `kube-master` unless told otherwise."""

    def __init__(self, node: str = "kube-master", router_id: int | None = None) -> None:
        self.planner = Planner(node, PlanSettings(router_id=router_id, interface_of=lambda _: "eth0"))

    def apply(self, text: str) -> Scenario:
        """Resources as a YAML list, apiVersion left out."""
        for manifest in yaml.safe_load(text):
            resource = parse_manifest({"apiVersion": "projectcalico.org/v3", **manifest})
            self.planner.update(Update(resource.key, resource))
        return self

    def remove(self, kind: str, name: str) -> Scenario:
        self.planner.update(Update(ResourceKey(kind, name), None))
        return self

    @property
    def plan(self) -> Plan:
        return self.planner.plan()

    @property
    def peers(self) -> dict[str, str]:
        """`{name: "address port AS kind [passive]"}`."""
        return {
            name: " ".join(
                [
                    format_address(peer.session.address),
                    str(peer.session.port),
                    str(peer.session.peer_as),
                    peer.kind.name,
                    *(["passive"] if peer.session.passive else []),
                ]
            )
            for name, peer in self.plan.peers.items()
        }

    @property
    def origins(self) -> dict[str, bool]:
        """`{prefix: whether the kernel gets a blackhole}`."""
        return {
            format_prefix(family, prefix): origin.blackhole for (family, prefix), origin in self.plan.origins.items()
        }

    def exports(self, peer: str, prefix: str, kind: SourceKind = SourceKind.IBGP, **attributes: int) -> FilterVerdict:
        """What the export filter of a peer says of a route."""
        family, wire = parse_prefix(prefix)
        attrs = AttributeSet(local_pref=attributes.get("local_pref"))
        return (
            self.plan.peers[peer]
            .export_filter[family]
            .evaluate(family, wire, Path(Source("x", kind, 1, b""), attrs, None))
        )

    def imports(self, peer: str, prefix: str) -> FilterVerdict:
        family, wire = parse_prefix(prefix)
        source = Source(peer, SourceKind.EBGP, 1, b"")
        return self.plan.peers[peer].import_filter[family].evaluate(family, wire, Path(source, AttributeSet(), None))


@pytest.fixture
def scenario() -> Callable[..., Scenario]:
    """Makes a scenario of the three NODES and more."""

    def make(*texts: str, node: str = "kube-master", router_id: int | None = None) -> Scenario:
        made = Scenario(node, router_id).apply(NODES)
        for text in texts:
            made.apply(text)
        return made

    return make
