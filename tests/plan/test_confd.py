"""The neighbours, kernel rules and exports that confd renders for its own test scenarios, and ours for the same resources.

confd's scenarios are not part of this repository. CALICO_SOURCE names a checkout of github.com/projectcalico/calico; without
it nothing is compared. What is compared: of each `protocol bgp` address, port, AS numbers, source, passive end, TTL
security, times, reflection, next hop, allowed own AS and whether there is a password; of each pool what becomes of its
routes; what may be exported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from routed.model.resources import ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.net.addresses import format_address, format_router_id
from routed.plan.planner import Planner
from routed.plan.types import Plan, PlanSettings
from routed.rib.path import SourceKind
from tests.plan.test_scenarios import programmed, verdict

Json = dict[str, Any]

SOURCE = os.environ.get("CALICO_SOURCE", "")
TESTS = Path(SOURCE) / "confd" / "tests"
INPUTS = TESTS / "mock_data" / "calicoctl"
RENDERED = TESTS / "compiled_templates"
FAMILIES = {4: "bird", 6: "bird6"}

#: confd's newest default, which resources of these scenarios do not say.
NEWEST = {"kind": "ClusterInformation", "metadata": {"name": "default"}, "spec": {"calicoVersion": "v3.33.0"}}

_STANZA = re.compile(r"^protocol bgp (\w+) from bgp_template \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_RULE = re.compile(r"if \( ?net ~ (\S+?) ?\) then \{ (.*)\}")


class _Loader(yaml.SafeLoader):
    """Numbers as Go's YAML reads them: `94:23:12` is a community and no number to base 60."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:int"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))


def unicast(text: str) -> str:
    """Some scenarios have peers in ffee::/16, which is multicast and which we refuse."""
    return text.replace("ffee::", "fdee::").replace("_ffee_", "_fdee_")


def manifests(path: Path) -> Iterator[Json]:
    for found in yaml.load_all(unicast(path.read_text()), _Loader):
        if not found or found["kind"] == "Secret":
            continue
        labels = found["metadata"].get("labels", {})  # calicoctl takes `yes` for text
        found["metadata"]["labels"] = {
            name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in labels.items()
        }
        yield found


def scenarios() -> list[str]:
    """Those with one input and what is rendered for it."""
    found = sorted(path.parent.relative_to(INPUTS) for path in INPUTS.rglob("input.yaml"))
    return [str(name) for name in found if (RENDERED / name / "bird.cfg").exists()]


def plan_of(name: str) -> Plan:
    made = Planner("kube-master", PlanSettings())
    for each in [name.removesuffix("/step2"), name] if name.endswith("/step2") else [name]:
        for manifest in (NEWEST, *manifests(INPUTS / each / "input.yaml")):
            resource = parse_manifest({"apiVersion": "projectcalico.org/v3", **manifest})
            made.update(Update(resource.key, resource))
    return made.plan()


def rendered(name: str) -> dict[str, Json]:
    """What confd says of each neighbour."""
    rows: dict[str, Json] = {}
    for stem in FAMILIES.values():
        text = unicast((RENDERED / name / f"{stem}.cfg").read_text())
        own = re.search(r"local as (\d+)", text)
        for peer, body in _STANZA.findall(text):
            address = re.search(r"neighbor (\S+?)(?: port (\d+))? as (\d+);", body)
            assert address is not None, body
            local, hops = re.search(r"local(?: \S+)? as (\d+)", body) or own, re.search(r"multihop ?(\d*);", body)
            source, cluster = re.search(r"source address (\S+);", body), re.search(r"rr cluster id (\S+);", body)
            restart, keepalive = (re.search(rf"{what} time (\d+)", body) for what in ("graceful restart", "keepalive"))
            allowed = re.search(r"allow local as ?(\d*)", body)
            rows[peer] = {
                "ip": address[1],
                "port": int(address[2] or 179),
                "as": int(address[3]),
                "local as": int(local[1]) if local else None,
                "source": source[1] if source else "any",
                "passive": "passive on" in body,
                "ttl security": int(hops[1] or 0) if hops and "ttl security on" in body else 0,
                "restart": int(restart[1]) if restart else 120,
                "keepalive": int(keepalive[1]) if keepalive else 0,
                "cluster id": cluster[1] if cluster else "",
                "client": "rr client" in body,
                "next hop": "keep" if "next hop keep" in body else "self" if "next hop self" in body else "auto",
                "own as": int(allowed[1] or 0) if allowed else 0,
                "password": bool(re.search(r"^\s*password", body, re.MULTILINE)),
            }
    return rows


def planned(plan: Plan) -> dict[str, Json]:
    rows: dict[str, Json] = {}
    for name, peer in plan.peers.items():
        session, client = peer.session, peer.kind is SourceKind.IBGP_CLIENT
        rows[name] = {
            "ip": format_address(session.address),
            "port": session.port,
            "as": session.peer_as,
            "local as": session.local_as,
            "source": format_address(session.local_address) if session.local_address else "any",
            "passive": session.passive,
            "ttl security": session.ttl_security,
            "restart": int(session.restart_time),
            "keepalive": int(session.keepalive_time),
            "cluster id": format_router_id(peer.cluster_id) if client else "",
            "client": client,
            "next hop": peer.next_hop_mode.name.lower(),
            "own as": peer.allowed_own_as,
            "password": bool(session.password),
        }
    return rows


@pytest.mark.skipif(not INPUTS.is_dir(), reason="CALICO_SOURCE names no checkout of Calico")
@pytest.mark.parametrize("name", scenarios() if SOURCE else ["none"])
def test_as_confd_has_it(name: str) -> None:
    plan = plan_of(name)
    assert planned(plan) == rendered(name)
    for version, stem in FAMILIES.items():
        text = (RENDERED / name / f"{stem}_ipam.cfg").read_text()
        exported, _, kernel = text[text.index("function calico_export_to_bgp_peers") :].partition(
            "filter calico_kernel"
        )
        for prefix, action in _RULE.findall(kernel):
            wanted = (
                "left" if action.startswith("reject")
                else "cross-subnet" if 'krt_tunnel=""' in action
                else "tunnel" if "tunl0" in action
                else "programmed"
            )  # fmt: skip
            assert (prefix, programmed(plan, prefix)) == (prefix, wanted)
        peers = [peer for peer, row in planned(plan).items() if (":" in row["ip"]) is (version == 6)]
        if peers and "static-routes" not in name:  # those are of services, which are with Kubernetes there
            for prefix, action in _RULE.findall(exported):
                wanted = {"peer": peers[0], "export": prefix, "source": "iBGP", "is": action.strip("; ")}
                assert verdict(plan, wanted) == wanted


@pytest.mark.skipif(not INPUTS.is_dir(), reason="CALICO_SOURCE names no checkout of Calico")
def test_what_is_deleted_takes_its_neighbours_along() -> None:
    made = Planner("kube-master", PlanSettings())
    for manifest in manifests(INPUTS / "explicit_peering" / "global" / "input.yaml"):
        resource = parse_manifest({"apiVersion": "projectcalico.org/v3", **manifest})
        made.update(Update(resource.key, resource))
    assert made.plan().peers
    for manifest in manifests(INPUTS / "explicit_peering" / "global" / "delete.yaml"):
        made.update(Update(ResourceKey(manifest["kind"], manifest["metadata"]["name"]), None))
    assert not made.plan().peers
