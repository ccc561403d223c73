"""How a firewall's batches are written: in steps of bounded length, which together say what one go says."""

from __future__ import annotations

from dataclasses import replace

from routed.dataplane.firewall import PORTION, Firewall
from routed.dataplane.table_found import SetDifference, TableFound
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
from routed.netlink.nftables import (
    IPV4_ADDRESS,
    Batch,
    ChainFound,
    Element,
    ElementFound,
    SetFlag,
    SetFound,
    SetShape,
    found_as,
)

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


def octets(batch: Batch) -> bytes:
    """Of all that is sent."""
    return b"".join(each.encode() for each in batch.changes)


def longest_step(firewall: Firewall, wanted: PolicyBatch | None) -> tuple[int, bytes]:
    """Messages' octets of the longest step of a change, or (None) of a rebuild; and the batch."""
    batch = Batch(firewall.table)
    steps = firewall.rebuilding(batch) if wanted is None else firewall.changing(wanted, batch)
    longest = before = 0
    for _ in steps:
        longest, before = max(longest, batch.size - before), batch.size
    return max(longest, batch.size - before), octets(batch)


def test_no_step_writes_much_and_all_steps_say_what_one_go_says():
    firewall, other = Firewall(), Firewall()
    longest, written = longest_step(firewall, program())
    assert written == octets(other.change(program()))
    assert longest < PORTION * 64 < len(written) / 10
    longest, written = longest_step(firewall, None)
    assert written == octets(other.rebuild())
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
        assert octets(firewall.rebuild()) == octets(other.rebuild())


def test_of_what_is_in_the_kernel_already_no_element_is_written_again():
    firewall = Firewall()
    firewall.take_in(program(50, 8, 5))
    sets = {
        name: SetFound(
            name, each.interval * SetFlag.INTERVAL | each.verdicts * SetFlag.MAP, each.key.number, each.key.length
        )
        for name, each in firewall._mirror.shapes().items()
    }
    chains = {name: ChainFound(name) for name in firewall._mirror.plain_chains()}
    found = TableFound(chains, sets, {name: frozenset(firewall.elements_of(name)) for name in sets})
    batch, whole = Batch(firewall.table), firewall.rebuild()
    for _ in firewall.rebuilding(batch, found):
        pass
    members = bytes((10, 0, 0, 7))
    assert members in octets(whole) and members not in octets(batch)
    assert batch.is_rebuild and whole.is_rebuild
    missing = replace(found, elements={**found.elements, "pods": found.elements["pods"] - {ElementFound(members)}})
    batch = Batch(firewall.table)
    for _ in firewall.rebuilding(batch, missing):
        pass
    assert members in batch.encode() and bytes((10, 0, 0, 8)) not in octets(batch)


def test_what_is_of_another_kind_is_replaced():
    name, shape = "pods", SetShape(IPV4_ADDRESS)
    right, base = SetFound(name, 0, 7, 4), {"forward": ChainFound("forward", "filter", 2, 0)}
    for table, fits in (
        (TableFound({}, {name: right}), True),
        (TableFound({}, {name: replace(right, flags=4)}), False),
        (TableFound({}, {name: replace(right, length=16)}), False),
        (TableFound({"p_web": ChainFound("p_web", "filter", 2, 0)}), False),
        (TableFound({"p_web": ChainFound("p_web")}), True),
        (TableFound({"forward": base["forward"]}), True),
        (TableFound({"forward": replace(base["forward"], drop=True)}), False),
        (TableFound({"theirs": ChainFound("theirs", "nat", 4, 1)}, {"theirs": right}), True),
    ):
        assert table.fits(base, ["p_web"], {name: shape}) is fits


def test_a_set_is_deleted_only_after_the_rules_that_named_it():
    firewall = Firewall()
    firewall.change(program(5, 2, 1))
    chains = (ChainUpdate("c0", None), ChainUpdate("c1", None))
    change = firewall.change(PolicyBatch((SetUpdate(PODS, gone=True),), chains))
    *_, rules, after = change.changes
    assert rules is change and len(after) == 1 and b"pods" in after.encode() and b"pods" not in rules.encode()


def test_a_set_is_filled_before_rules_that_name_it():
    """Whether it comes with a policy, or with the whole table where something of one is there."""
    firewall = Firewall()
    change = firewall.change(program(5, 2, 1))
    rebuilt = Batch(firewall.table)
    for _ in firewall.rebuilding(rebuilt, TableFound()):
        pass
    members = bytes((10, 0, 0, 3))
    for batch in (change, rebuilt):
        sets, rules = batch.changes
        assert sets is batch.before and members in sets.encode() and members not in rules.encode()
        assert b"p_c0" in rules.encode() and b"p_c0" not in sets.encode()


def test_of_a_set_of_ranges_only_those_that_differ_are_written():
    """Ranges that touch, and one that reaches to the end."""
    a, b, c, d, e = (bytes((10, 0, each, 0)) for each in range(5))
    last, there = Element(e, b""), [Element(a, b), Element(b, c)]
    found = frozenset(found for each in (*there, last) for found in found_as(each))
    table = TableFound({}, {"nets": SetFound("nets", SetFlag.INTERVAL, 7, 4)}, {"nets": found})
    assert table.difference("nets", [*there, last]) == SetDifference()
    assert table.difference("nets", [there[0], Element(b, d), last]) == SetDifference(
        removed=[there[1]], added=[Element(b, d)]
    )
    assert table.difference("nets", [there[1]]) == SetDifference(removed=[there[0], last], added=[])
    broken = TableFound({}, table.sets, {"nets": found - {*found_as(last)} | {ElementFound(d, end=True)}})
    assert broken.difference("nets", there) == SetDifference(anew=True, added=there)
