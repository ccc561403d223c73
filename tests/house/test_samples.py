"""The configuration as shipped and the sample resources are what they say they are."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from routed.config import Config, load_config, parse_config
from routed.datastore.etcd_settings import EtcdDatastore
from routed.datastore.file import load_folder
from routed.datastore.guard import MassDelete
from routed.errors import ConfigError
from routed.model.resources import Resource, Update
from routed.model.schema import parse_manifest
from routed.plan.planner import Planner
from routed.plan.types import Plan
from routed.rib.path import SourceKind
from tests.house.rooms import ROOT, section, table

SHIPPED = ROOT / "config" / "routed.yaml"
SAMPLES = ROOT / "config" / "resources"
NODES = ("node-1", "node-2", "node-3")
REFLECTORS = ("reflector-1", "reflector-2")

#: What may be used together, mesh.yaml being the ground of all.
COMBINATIONS = [
    ("mesh",),
    ("mesh", "tor", "filter"),
    ("mesh", "reflectors"),
    ("mesh", "tor", "filter", "reflectors"),
]


def known_keys(mapping: str = "") -> set[str]:
    """The keys the daemon says it knows, at the top or in a mapping; none where `mapping` is none."""
    text = f"{mapping}: {{zzzz: 1}}" if mapping else "zzzz: 1"
    with pytest.raises(ConfigError) as caught:
        parse_config(text.encode(), "routed.yaml")
    _, _, words = str(caught.value).partition("known keys are ")
    return set(words.replace(" and ", ", ").split(", ")) - {""}


def all_keys() -> set[str]:
    """Every key of routed.yaml, as `kernel.table`."""
    return {name for key in known_keys() for name in ({f"{key}.{inner}" for inner in known_keys(key)} or {key})}


def uncommented() -> str:
    """The file as shipped, with the keys whose defaults depend on something."""
    return re.sub(r"(?m)^#( *\w+:)", r"\1", SHIPPED.read_text())


def resources(*names: str) -> list[Resource]:
    return [
        parse_manifest(manifest)
        for name in names
        for manifest in yaml.safe_load_all((SAMPLES / f"{name}.yaml").read_text())
    ]


def plan(node: str, names: Sequence[str]) -> Plan:
    planner = Planner(node)
    for resource in resources(*names):
        planner.update(Update(resource.key, resource))
    return planner.plan()


class TestRoutedYaml:
    def test_the_file_as_shipped_says_the_defaults(self) -> None:
        shipped = load_config(str(SHIPPED))
        assert shipped == Config(node_name=socket.gethostname().lower(), datastore_path="/etc/routed/resources")

    def test_the_file_as_shipped_has_every_key(self) -> None:
        found = set()
        text = uncommented()
        for key, value in yaml.safe_load(text).items():
            found |= {f"{key}.{inner}" for inner in value} if isinstance(value, dict) else {key}
        assert found == all_keys()
        assert load_config(str(SHIPPED)) == parse_config(SHIPPED.read_bytes(), str(SHIPPED))

    def test_the_commented_keys_are_right_too(self, tmp_path: Path) -> None:
        file = tmp_path / "routed.yaml"
        file.write_text(
            re.sub(
                r"(?m)^  (endpoints|caFile|certFile|keyFile|username|passwordFile|prefix|massDelete):.*$",
                "",
                uncommented(),
            )
        )
        config = load_config(str(file))
        assert (config.node_name, config.router_id) == ("node-1", 0x0A000001)
        assert config.secrets_dir == "/etc/routed/secrets"

    def test_the_keys_of_etcd_are_right_too(self, tmp_path: Path) -> None:
        file = tmp_path / "routed.yaml"
        file.write_text(
            re.sub(r"(?m)^  (type: file|path:).*$", "", uncommented()).replace("datastore:", "datastore:\n  type: etcd")
        )
        etcd = load_config(str(file)).etcd
        assert etcd is not None and len(etcd.client.endpoints) == 2
        assert (etcd.prefix, etcd.mass_delete) == (EtcdDatastore(etcd.client).prefix, MassDelete())

    def test_the_reference_has_every_key(self) -> None:
        text = section((ROOT / "docs" / "configuration.md").read_text(), "## routed.yaml")
        assert {row[0].strip("`") for row in table(text, "key", "default")} == all_keys()


class TestResources:
    def test_the_folder_has_no_problem(self) -> None:
        found, problems = load_folder(SAMPLES)
        assert problems == []
        assert len(found) == sum(len(resources(path.stem)) for path in SAMPLES.iterdir())

    def test_every_kind_is_in_a_sample(self) -> None:
        assert {resource.kind for resource in resources("mesh", "tor", "filter", "reflectors")} == {
            "Node", "BGPConfiguration", "BGPPeer", "BGPFilter", "IPPool", "BlockAffinity",
        }  # fmt: skip

    @pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
    def test_they_plan_without_problems(self, names: tuple[str, ...]) -> None:
        for node in (*NODES, *(REFLECTORS if "reflectors" in names else ())):
            made = plan(node, names)
            assert made.problems == ()
            assert made.peers

    def test_the_mesh_is_one(self) -> None:
        for node in NODES:
            made = plan(node, ["mesh"])
            assert len(made.peers) == 2
            assert [origin.blackhole for origin in made.origins.values()] == [True]

    def test_the_switch_is_a_peer_of_its_rack(self) -> None:
        peers = {node: plan(node, ["mesh", "tor", "filter"]).peers for node in NODES}
        has = {node: any(peer.kind is SourceKind.EBGP for peer in each.values()) for node, each in peers.items()}
        assert has == {"node-1": True, "node-2": True, "node-3": False}

    def test_reflectors_have_the_nodes_as_clients_and_each_other_as_plain_peer(self) -> None:
        for node in REFLECTORS:
            kinds = [peer.kind for peer in plan(node, ["mesh", "reflectors"]).peers.values()]
            assert sorted(kind.name for kind in kinds) == ["IBGP", "IBGP_CLIENT", "IBGP_CLIENT", "IBGP_CLIENT"]

    def test_the_example_in_the_readme_loads_and_plans(self) -> None:
        text = (ROOT / "README.md").read_text()
        _, _, rest = text.partition("smallest that does\n")
        lines = [line[7:] for line in rest.splitlines() if line.startswith("       ")]
        end = next(index for index, line in enumerate(lines) if line.startswith("sysctl"))
        manifests = list(yaml.safe_load_all("\n".join(lines[:end])))
        planner = Planner("node-1")
        for manifest in manifests:
            resource = parse_manifest(manifest)
            planner.update(Update(resource.key, resource))
        made = planner.plan()
        assert set(made.peers) == {"Mesh_10_0_0_2", "Global_10_0_0_254"}
        assert made.problems == ()
