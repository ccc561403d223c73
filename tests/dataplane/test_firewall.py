"""How a firewall's batches are written: in steps of bounded length, which together say what one go says."""

from __future__ import annotations

from routed.dataplane.firewall import PORTION, Firewall
from routed.desired_policy import (
    Action,
    Chain,
    ChainUpdate,
    EndpointPolicy,
    EndpointUpdate,
    HostRules,
    Place,
    PolicyBatch,
    Rule,
    SetKind,
    SetSpec,
    SetUpdate,
    Side,
    TierWalk,
    Walk,
)
from routed.net.families import Family
from routed.netlink.nftables import Batch

PODS = SetSpec("pods", Family.IPV4_UNICAST, SetKind.HOSTS)


def program(pods: int = 5_000, policies: int = 200, endpoints: int = 50) -> PolicyBatch:
    """One set with all pods of a cluster, policies that name it, pods here that ask some of them."""
    members = frozenset(bytes((10, number >> 16, number >> 8 & 255, number & 255)) for number in range(pods))
    rule = Rule(Action.ALLOW, family=Family.IPV4_UNICAST, source=Side(sets=("pods",)), origin="web")
    chains = [Chain(f"c{number}", (rule,) * 3, f"policy {number}") for number in range(policies)]
    made = []
    for number in range(endpoints):
        asked = tuple(chain.name for chain in chains[number : number + 4])
        walk = Walk((TierWalk("default", asked, Action.DENY),), ())
        made.append(
            EndpointUpdate(f"cali{number}", Place.WORKLOAD, EndpointPolicy(f"cali{number}", Place.WORKLOAD, walk, walk))
        )
    return PolicyBatch(
        (SetUpdate(PODS, members),), tuple(ChainUpdate(chain.name, chain) for chain in chains), tuple(made), HostRules()
    )


def longest_step(firewall: Firewall, wanted: PolicyBatch | None) -> tuple[int, bytes]:
    """Messages' octets of the longest step of a change, or (None) of a rebuild; and the batch."""
    batch = Batch(firewall.table)
    steps = firewall.rebuilding(batch) if wanted is None else firewall.changing(wanted, batch)
    longest = before = 0
    for _ in steps:
        longest, before = max(longest, batch.size - before), batch.size
    return max(longest, batch.size - before), batch.encode()


def test_no_step_writes_much_and_all_steps_say_what_one_go_says():
    firewall, other = Firewall(), Firewall()
    longest, written = longest_step(firewall, program())
    assert written == other.change(program()).encode()
    assert longest < PORTION * 64 < len(written) / 10
    longest, written = longest_step(firewall, None)
    assert written == other.rebuild().encode()
    assert longest < PORTION * 64 < len(written) / 10


def test_what_a_rebuild_writes_was_only_taken_in():
    firewall, other = Firewall(), Firewall()
    gone = PolicyBatch(
        (SetUpdate(PODS, removed=frozenset((bytes((10, 0, 0, 1)),))),),
        (ChainUpdate("c0", None),),
        (EndpointUpdate("cali0", Place.WORKLOAD, None),),
    )
    for wanted in (program(20, 8, 5), gone):
        firewall.take_in(wanted)
        other.change(wanted)
        assert firewall.program == other.program
        assert firewall.rebuild().encode() == other.rebuild().encode()
