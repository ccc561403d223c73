"""What is where in the firewall's table: its chains and sets by name, and the bits of the packet mark. No octets of rules.

    raw_prerouting   packets of workloads with a source that is not theirs are dropped; untracked host policy
    pre_dnat         host policy before the destination is translated
    input, output    host policy; what workloads say to their node
    forward          what is of no connection that is there goes to `forwarded`: from_workload, to_workload and the host's
                     forward policy, in the order a packet meets them
    postrouting      host policy for packets of the node whose destination was translated: only here is it known where
                     they leave
    nat_postrouting  natOutgoing

Each of these jumps to a dispatch chain (`from_workload`, `host_in`, ...), whose verdict map leads by interface name to a
walk (`walk_name`). A walk calls a chain for each of its tiers (`stage_chains`); endpoints that ask the same share it. In a
tier's chain every policy's (`policy_chain`) is called. So the calls are never deeper than from a base chain to a policy's,
however many tiers there are: the kernel allows 16. Walks are reached by `goto`, so a `return` in one leads back to the base
chain, where the packet's next endpoint is asked. In a dispatch chain for workloads, what has no entry is dropped.

Packets of a workload at a bridge show the bridge, not the workload's port. They are told by their addresses: `from_bridge`
drops what does not have a MAC address and a source that belong together (and the port lets in no other MAC address), and the
walk is found by address. `desired_policy.BridgePort` says who is at one.
"""

from __future__ import annotations

import functools
import hashlib

from routed.dataplane import firewall_words as words
from routed.desired_policy import Action, Place, Walk
from routed.net.families import Family
from routed.netlink.nftables import ChainFound, Hook, Priority

TABLE = "routed"

CLOSED_HOSTS = frozenset(("closed_host_in", "closed_host_out", "closed_host_forward"))
"""What closes host endpoints. Not to stay where the kernel takes no rules: somebody may have to get in to mend that."""
CLOSED = frozenset(("closed", "closed_input")) | CLOSED_HOSTS
"""The only chains of a table that is there in place of one the kernel does not take."""

#: Bits of the packet mark this program uses; kube-proxy has 0x4000 and 0x8000.
ALLOWED = 0x10000
PASSED = 0x20000
DECIDED = ALLOWED | PASSED
EARLY = 0x40000
"""A host policy before connection tracking or translation has admitted the packet."""

#: The chain a packet is dispatched in, and its verdict map, by place and direction.
DISPATCH = {
    (Place.WORKLOAD, "egress"): "from_workload",
    (Place.WORKLOAD, "ingress"): "to_workload",
    (Place.HOST, "ingress"): "host_in",
    (Place.HOST, "egress"): "host_out",
    (Place.HOST_FORWARD, "ingress"): "forward_in",
    (Place.HOST_FORWARD, "egress"): "forward_out",
    (Place.HOST_PRE_DNAT, "ingress"): "pre_dnat_in",
    (Place.HOST_UNTRACKED, "ingress"): "untracked_in",
    (Place.HOST_UNTRACKED, "egress"): "untracked_out",
}
EARLY_PLACES = (Place.HOST_PRE_DNAT, Place.HOST_UNTRACKED)
OPEN_ENDED = (*EARLY_PLACES, Place.HOST_FORWARD)
"""Where a packet that no tier decides about goes on."""
FAILSAFE_PLACES = (Place.HOST, Place.HOST_PRE_DNAT, Place.HOST_UNTRACKED)
OF_WORKLOADS_TOO = (Place.HOST_PRE_DNAT, Place.HOST_FORWARD)
"""Where the wildcard means workloads' interfaces as well."""

OF_WORKLOADS = ("from_workload", "to_workload")
"""The dispatch chains that also find a walk by address: of workloads at a bridge, whose interface no packet shows here."""
FROM_BRIDGE = "from_bridge"
FORWARDED = "forwarded"
"""What packets that pass through are asked; those of connections that are there only pass `forward`."""
UNSURE = "unsure"
"""Where packets go that are not known to have a source that belongs to the interface they came by."""
SPOOFED = "spoofed"
"""Where such packets of workloads are asked whether their source may be theirs."""

WILDCARD = "*"
OF_NONE = "of no connection"
"""What people call packets of no connection that are no beginning of one."""

INNER_CHAINS = (FORWARDED, UNSURE, FROM_BRIDGE, SPOOFED, *DISPATCH.values())
"""Those of a rebuilt table beside the base chains, whatever policies there are."""

NAT = "nat_postrouting"
"""Never deleted: connections that are translated need it as long as they live."""
BASE_CHAINS = {
    name: ChainFound(name, kind, hook, priority)
    for name, kind, hook, priority in (
        ("raw_prerouting", "filter", Hook.PREROUTING, Priority.RAW),
        ("raw_output", "filter", Hook.OUTPUT, Priority.RAW),
        ("pre_dnat", "filter", Hook.PREROUTING, Priority.MANGLE),
        ("input", "filter", Hook.INPUT, Priority.FILTER),
        ("output", "filter", Hook.OUTPUT, Priority.FILTER),
        ("forward", "filter", Hook.FORWARD, Priority.FILTER),
        ("postrouting", "filter", Hook.POSTROUTING, Priority.MANGLE),
        (NAT, "nat", Hook.POSTROUTING, Priority.SOURCE_NAT),
    )
}
"""As the kernel lists them. Those without rules are not there: a packet is stopped at each, whatever is in it."""


def policy_chain(name: str) -> str:
    return f"p_{name}"


@functools.lru_cache(1 << 12)
def walk_name(walk: Walk, place: Place) -> str:
    """By content: endpoints that ask the same share one. Asked several times for each pod."""
    content = repr((place, walk))
    return f"w_{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def stages(walk: Walk, place: Place) -> list[tuple[str, tuple[str, ...], Action]]:
    """The tiers of a walk and, where it must end in a decision, the profiles: names, chains, what their end does."""
    stages = [(tier.name, tier.chains, tier.end) for tier in walk.tiers]
    if place not in OPEN_ENDED:
        stages.append(("profiles", walk.profiles, Action.DENY))
    return stages


def stage_chains(name: str, stages: list[tuple[str, tuple[str, ...], Action]]) -> list[str]:
    """The chains of a walk's tiers."""
    return [f"{name}_{number}" for number in range(len(stages))]


def pool_set(kind: str, family: Family) -> str:
    return f"pools_{kind}_{words.LABEL[family]}"


def by_address(dispatch: str, family: Family) -> str:
    return f"by_{dispatch}_{words.LABEL[family]}"


def own_set(family: Family) -> str:
    return f"own_{words.LABEL[family]}"


OWN_SETS = {own_set(family): family for family in Family}
"""What each workload's own packets come from: its interface or bridge, and an address of its own."""


def bridged_set(family: Family) -> str:
    return f"bridged_{words.LABEL[family]}"
