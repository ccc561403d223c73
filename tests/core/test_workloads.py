"""Pods of a node that are routed's: their addresses are routes behind their interfaces, wherever those are just now."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.core.core import Core, CoreSettings
from routed.core.effects import Routes
from routed.desired import Gateway, KernelRoute, RouteKind
from routed.model.resources import JsonObject, ResourceKey, Update
from routed.model.schema import parse_manifest
from routed.net.families import Family
from routed.net.prefixes import format_prefix
from routed.observed import Interface, KernelChange


def endpoint(pod: str, *addresses: str, node: str = "n1", interface: str = "") -> JsonObject:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "WorkloadEndpoint",
        "metadata": {"name": f"{node}-k8s-{pod}-eth0", "namespace": "default"},
        "spec": {
            "orchestrator": "k8s",
            "node": node,
            "pod": pod,
            "endpoint": "eth0",
            "ipNetworks": [f"{each}/{128 if ':' in each else 32}" for each in addresses],
            "interfaceName": interface or f"cali{pod}",
        },
    }


class Here:
    """A core, and what its effects make of a kernel."""

    def __init__(self, *, own_workloads: bool = True) -> None:
        self.core = Core(CoreSettings(node_name="n1", own_workloads=own_workloads), 1)
        self.core.in_sync(0.0)
        self.kernel: dict[str, KernelRoute] = {}

    def apply(self, *manifests: JsonObject) -> None:
        for manifest in manifests:
            value = parse_manifest(manifest)
            self.core.resource(Update(value.key, value), 1.0)
        self.settle()

    def delete(self, pod: str) -> None:
        key = ResourceKey("WorkloadEndpoint", f"n1-k8s-{pod}-eth0", "default")
        self.core.resource(Update(key, None), 1.0)
        self.settle()

    def link(self, name: str, index: int, up: bool = True) -> None:
        self.core.kernel(KernelChange(interfaces=(Interface(index, name, up),)), 1.0)
        self.settle()

    def unlink(self, index: int) -> None:
        self.core.kernel(KernelChange(interfaces_removed=(index,)), 1.0)
        self.settle()

    def settle(self) -> None:
        while self.core.flush(1.0):
            pass
        effects: list[Any] = self.core.effects
        self.core.effects = []
        for effect in effects:
            if isinstance(effect, Routes):
                for batch in effect.batches:
                    for prefix in batch.prefixes:
                        text = format_prefix(batch.family, prefix)
                        if batch.route is None:
                            self.kernel.pop(text, None)
                        else:
                            self.kernel[text] = batch.route


def behind(index: int) -> KernelRoute:
    return KernelRoute(RouteKind.UNICAST, (Gateway(b"", index),))


@pytest.fixture
def here() -> Here:
    return Here()


def test_a_route_for_every_address(here: Here):
    here.link("calia", 7)
    here.apply(endpoint("a", "10.65.0.1", "fd00::1"))
    assert here.kernel == {"10.65.0.1/32": behind(7), "fd00::1/128": behind(7)}
    here.delete("a")
    assert here.kernel == {}


def test_no_route_leads_to_an_interface_of_the_nodes_own_that_an_endpoint_names(here: Here):
    here.link("eth0", 2)
    here.link("azv7", 3)
    here.link("calib", 7)
    here.apply(
        endpoint("a", "10.65.0.1", interface="eth0"),
        endpoint("b", "10.65.0.1"),
        endpoint("c", "10.65.0.2", interface="azv7"),
    )
    assert here.kernel == {"10.65.0.1/32": behind(7)}
    told = [each for each in here.core.plan.problems if "is no pod's interface" in each]
    assert [each.partition(" is no")[0] for each in told] == [
        "WorkloadEndpoint default/n1-k8s-a-eth0: eth0", "WorkloadEndpoint default/n1-k8s-c-eth0: azv7",
    ]  # fmt: skip
    felix = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "FelixConfiguration",
        "metadata": {"name": "default"},
        "spec": {"interfacePrefix": "azv"},
    }
    here.apply(felix)
    assert here.kernel == {"10.65.0.1/32": behind(7), "10.65.0.2/32": behind(3)}
    here.delete("a")
    assert not [each for each in here.core.plan.problems if "is no pod's interface" in each]


def test_the_interface_may_come_later_go_and_come_back_with_another_index(here: Here):
    here.apply(endpoint("a", "10.65.0.1"))
    assert here.kernel == {}
    here.link("calia", 7, up=False)
    assert here.kernel == {}
    here.link("calia", 7)
    assert here.kernel == {"10.65.0.1/32": behind(7)}
    here.unlink(7)
    assert here.kernel == {}
    here.link("calia", 9)
    assert here.kernel == {"10.65.0.1/32": behind(9)}


def test_pods_of_other_nodes_and_pods_that_move(here: Here):
    here.link("calia", 7)
    here.apply(endpoint("a", "10.65.0.1", node="n2"))
    assert here.kernel == {}
    here.apply(endpoint("a", "10.65.0.1"), endpoint("a", "10.65.0.2"))
    assert here.kernel == {"10.65.0.2/32": behind(7)}


def test_a_pod_has_the_route_of_its_block_of_one_address(here: Here):
    """Pools with blockSize 32 or 128: the block is announced all the time, and has no route in the kernel itself."""
    here.link("calia", 7)
    for cidr in ("10.70.0.3/32", "fd00:70::3/128"):
        name = "n1-" + cidr.replace(".", "-").replace(":", "-").replace("/", "-")
        here.apply(
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": "BlockAffinity",
                "metadata": {"name": name},
                "spec": {"node": "n1", "cidr": cidr, "state": "confirmed", "type": "host"},
            }
        )

    def announced() -> list[str]:
        return [format_prefix(family, prefix) for family, rib in here.core.ribs.items() for prefix in rib.table]

    assert here.kernel == {}
    both = announced()
    assert both == ["10.70.0.3/32", "fd00:70::3/128"]
    here.apply(endpoint("a", "10.70.0.3", "fd00:70::3"))
    assert here.kernel == {"10.70.0.3/32": behind(7), "fd00:70::3/128": behind(7)} and announced() == both
    here.delete("a")
    assert here.kernel == {} and announced() == both


def test_one_address_two_pods_is_said(here: Here):
    here.link("calia", 7)
    here.link("calib", 8)
    here.apply(endpoint("a", "10.65.0.1"), endpoint("b", "10.65.0.1"))
    assert here.kernel == {"10.65.0.1/32": behind(7)}
    assert any("is the address of" in problem for problem in here.core.plan.problems)
    here.delete("a")
    assert here.kernel == {"10.65.0.1/32": behind(8)}
    assert not any("is the address of" in problem for problem in here.core.plan.problems)


def test_what_a_pod_asks_for_and_nobody_does_is_said(here: Here):
    plain = endpoint("a", "10.65.0.1")
    spec = plain["spec"]
    assert isinstance(spec, dict)
    here.apply(plain | {"spec": spec | {"ipNATs": [{"internalIP": "10.65.0.1", "externalIP": "192.0.2.1"}]}})
    here.apply(plain | {"spec": spec | {"ipv4Gateway": "10.65.0.254", "qosControls": {"ingressBandwidth": 1000000}}})
    said = [problem for problem in here.core.plan.problems if "not done" in problem]
    assert len(said) == 1 and said[0].endswith("not done for it are ipv4Gateway, qosControls")
    here.apply(plain)
    assert not any("not done" in problem for problem in here.core.plan.problems)


def test_beside_calico_s_own_agents_nothing_is_programmed():
    here = Here(own_workloads=False)
    here.link("calia", 7)
    here.apply(endpoint("a", "10.65.0.1"))
    assert here.kernel == {}
    assert Family.IPV4_UNICAST in here.core.ribs


_PODS = st.sampled_from("abc")
_CHANGES = st.lists(
    st.one_of(
        st.tuples(_PODS, st.lists(st.sampled_from(("10.65.0.1", "10.65.0.2", "fd00::1")), unique=True)),
        st.tuples(st.sampled_from((7, 8, 9)), st.sampled_from(("calia", "calib", "calic", ""))),
    ),
    max_size=20,
)


@given(_CHANGES)
def test_however_pods_and_interfaces_came_and_went_the_kernel_has_what_follows_from_what_is_there(
    changes: list[tuple[str | int, list[str] | str]],
):
    here, pods, links = Here(), dict[str, list[str]](), dict[int, str]()
    for which, what in changes:
        if isinstance(which, int) and isinstance(what, str):
            links.pop(which, None)
            if what and what not in links.values():
                links[which] = what
                here.link(what, which)
            else:
                here.unlink(which)
        elif isinstance(which, str) and isinstance(what, list):
            pods.pop(which, None)
            if what:
                pods[which] = what
                here.apply(endpoint(which, *what))
            else:
                here.delete(which)
    indexes = {name: index for index, name in links.items()}
    owners = {address: pod for pod in sorted(pods, reverse=True) for address in pods[pod]}
    assert here.kernel == {
        f"{address}/{128 if ':' in address else 32}": behind(indexes[f"cali{pod}"])
        for address, pod in owners.items()
        if f"cali{pod}" in indexes
    }
    shared = sum(max(0, sum(address in each for each in pods.values()) - 1) for address in owners)
    assert sum("is the address of" in problem for problem in here.core.plan.problems) == shared
