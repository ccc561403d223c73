"""Which routes this node originates for its own pods: one for every address of a WorkloadEndpoint that is here.

Only where the node's pods are routed's (`PlanSettings.own_workloads`); beside Calico's CNI plugin and Felix these routes
are theirs, and learned from the kernel instead (`program`). How such a route is announced follows from the blocks, as for
any other: one inside an own block hides behind it, and one that is an own block of a single address is announced as that,
whose place it takes.

Invariant: a pod that comes or goes costs the same however many there are.
"""

from __future__ import annotations

from routed.model.resources import Cidr, ResourceKey
from routed.model.workloads import WorkloadEndpoint
from routed.net.families import Family
from routed.plan.types import Origin

WORKLOAD = "workload"


class Workloads:
    """The endpoints of this node, what they originate and what is wrong with them."""

    def __init__(self) -> None:
        self._prefixes: tuple[str, ...] = ()
        """What names of pods' interfaces begin with."""
        self.routes: dict[tuple[Family, bytes], Origin] = {}
        """By prefix; of two endpoints with one address the first by name has it. To be copied by who keeps it."""
        self._endpoints: dict[ResourceKey, WorkloadEndpoint] = {}
        self._owners: dict[Cidr, set[ResourceKey]] = {}
        self._shared: set[Cidr] = set()
        """What more than one endpoint has."""
        self._not_done: dict[ResourceKey, str] = {}
        self._strange: set[ResourceKey] = set()
        """Endpoints whose interfaces are no pods' by their names: somebody may name the node's uplink."""
        self._spoofing: dict[ResourceKey, str] = {}
        """Endpoints that ask for sources beside their own, and the bridges they are at."""

    def named(self, prefixes: tuple[str, ...]) -> None:
        """Names of pods' interfaces begin with these."""
        if prefixes != self._prefixes:
            self._prefixes = prefixes
            self._strange = {key for key, endpoint in self._endpoints.items() if self._is_strange(endpoint)}
            for network in tuple(self._owners):
                self._judge(network)

    def _is_strange(self, endpoint: WorkloadEndpoint) -> bool:
        return endpoint.interface_name != "" and not endpoint.interface_name.startswith(self._prefixes)

    def put(self, key: ResourceKey, endpoint: WorkloadEndpoint | None) -> None:
        """This endpoint is here, or (None) is not."""
        old = self._endpoints.pop(key, None)
        touched: dict[Cidr, None] = {}
        for network in old.ip_networks if old is not None else ():
            touched[network] = None
            self._owners.get(network, set()).discard(key)
        self._not_done.pop(key, None)
        self._spoofing.pop(key, None)
        self._strange.discard(key)
        if endpoint is not None:
            self._endpoints[key] = endpoint
            if self._is_strange(endpoint):
                self._strange.add(key)
            for network in endpoint.ip_networks:
                touched[network] = None
                self._owners.setdefault(network, set()).add(key)
            if asked := _not_done(endpoint):
                self._not_done[key] = asked
            if endpoint.allow_spoofed_source_prefixes:
                self._spoofing[key] = endpoint.bridge
        for network in touched:
            self._judge(network)

    def problems(self, source_spoofing: bool) -> list[str]:
        """Addresses that two endpoints have, and what endpoints ask for that nobody does here: a sentence each.
        `source_spoofing`: pods may have the sources they ask for."""
        found = []
        for network in self._shared:
            first, *others = sorted(self._owners[network])
            found += [
                f"{key}: {network} is the address of {first} too, which has it; one of the two must go"
                for key in others
            ]
        prefixes = " or ".join(self._prefixes)
        found += [
            f"{key}: {self._endpoints[key].interface_name} is no pod's interface, whose name begins with {prefixes}: "
            "no route leads there, and it is left as it is"
            for key in self._strange
        ]
        for key, bridge in self._spoofing.items():
            if bridge:
                found.append(f"{key}: allowSpoofedSourcePrefixes is not done for pods at a bridge, as at {bridge}")
            elif not source_spoofing:
                found.append(
                    f"{key}: allowSpoofedSourcePrefixes does nothing: FelixConfiguration has no workloadSourceSpoofing: Any"
                )
        return found + [f"{key}: not done for it are {asked}" for key, asked in self._not_done.items()]

    def _judge(self, network: Cidr) -> None:
        """Who has this address."""
        owners = self._owners[network]
        if not owners:
            del self._owners[network]
        if len(owners) > 1:
            self._shared.add(network)
        else:
            self._shared.discard(network)
        prefix = (network.family, network.prefix)
        routed = owners - self._strange if self._strange else owners
        first = min((key for key in routed if self._endpoints[key].interface_name), default=None)
        if first is None:
            self.routes.pop(prefix, None)
            return
        endpoint = self._endpoints[first]
        made = Origin(WORKLOAD, blackhole=False, why=str(first), interface=endpoint.bridge or endpoint.interface_name)
        if self.routes.get(prefix) != made:
            self.routes[prefix] = made


def _not_done(endpoint: WorkloadEndpoint) -> str:
    """What an endpoint asks for that nobody does here, or empty."""
    return ", ".join(
        name
        for name, value in (
            ("ipNATs", endpoint.ip_nats),
            ("ipv4Gateway", endpoint.ipv4_gateway),
            ("ipv6Gateway", endpoint.ipv6_gateway),
            ("qosControls", endpoint.qos_controls),
        )
        if value
    )
