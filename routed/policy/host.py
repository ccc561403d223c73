"""What holds on a whole node whatever its endpoints are: from pools and FelixConfigurations, as Felix has it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from routed.desired_policy import Action, Failsafe, HostRules
from routed.model.resources import IPPool
from routed.model.settings import (
    EndpointToHostAction,
    FelixConfiguration,
    ProtoPort,
    felix_in_force,
    may_spoof,
    workload_prefixes,
)
from routed.net.families import Family

_TCP, _UDP = 6, 17

#: Felix's own failsafe ports: how a host stays reachable whatever its policies say.
_CLUSTER = tuple(Failsafe(_TCP, port) for port in (179, 2379, 2380, 5473, 6443, 6666, 6667))
FAILSAFE_IN = (Failsafe(_TCP, 22), Failsafe(_UDP, 68), *_CLUSTER)
FAILSAFE_OUT = (Failsafe(_UDP, 53), Failsafe(_UDP, 67), *_CLUSTER)

_TO_HOST = {
    EndpointToHostAction.ACCEPT: Action.ALLOW,
    EndpointToHostAction.RETURN: Action.PASS,
    EndpointToHostAction.DROP: Action.DENY,
}


def host_rules(
    pools: Iterable[IPPool], felix: Mapping[str, FelixConfiguration], node_name: str, prefixes: tuple[str, ...] = ()
) -> HostRules:
    """`felix` by name; `prefixes`: of workloads' interfaces beside routed's own, where the node's configuration says."""
    nat: dict[Family, list[bytes]] = {}
    every: dict[Family, list[bytes]] = {}
    for pool in pools:
        every.setdefault(pool.cidr.family, []).append(pool.cidr.prefix)
        if pool.nat_outgoing:
            nat.setdefault(pool.cidr.family, []).append(pool.cidr.prefix)
    configured = felix_in_force(felix, node_name)
    to_host = next(
        (each.default_endpoint_to_host_action for each in configured if each.default_endpoint_to_host_action), None
    )
    inbound = next((each.failsafe_inbound for each in configured if each.failsafe_inbound is not None), None)
    outbound = next((each.failsafe_outbound for each in configured if each.failsafe_outbound is not None), None)
    unchecked = next(
        (
            each.disable_conntrack_invalid_check
            for each in configured
            if each.disable_conntrack_invalid_check is not None
        ),
        False,
    )
    return HostRules(
        workload_prefixes=workload_prefixes(felix, node_name, prefixes),
        workload_to_host=_TO_HOST[to_host] if to_host is not None else Action.ALLOW,
        source_spoofing=may_spoof(felix, node_name),
        drop_invalid=not unchecked,
        failsafe_in=FAILSAFE_IN if inbound is None else _failsafe(inbound),
        failsafe_out=FAILSAFE_OUT if outbound is None else _failsafe(outbound),
        nat_pools={family: tuple(sorted(found)) for family, found in nat.items()},
        all_pools={family: tuple(sorted(found)) for family, found in every.items()},
    )


def _failsafe(ports: tuple[ProtoPort, ...]) -> tuple[Failsafe, ...]:
    return tuple(
        Failsafe(each.protocol, each.port)
        if each.net is None
        else Failsafe(each.protocol, each.port, each.net.family, each.net.prefix)
        for each in ports
    )
