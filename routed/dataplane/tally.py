"""What policies' rules counted, summed up by policy and action from readings of the kernel's counters.

Invariants: sums never run backwards, though a chain's counters begin anew when its rules are rewritten; at most so many
policies have a sum of their own (those seen first, as long as they have rules in the kernel), the others one together.
Pure: readings in, sums out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from routed.desired_policy import Action
from routed.netlink.nftables import RuleFound

Decisions = Mapping[str, Mapping[str, tuple[str, Action]]]
"""By chain and comment of a rule: whose it is, and what it does."""

Reading = tuple[int, str, int]
"""Which table (they are counted), the chain, the rule's handle: what one counter is known by."""


class RuleTally:
    """See the module's docstring."""

    def __init__(self, named: Callable[[], int]) -> None:
        """`named`: how many policies may have sums of their own."""
        self._most = named
        self._named: dict[str, Counter[Action]] = {}
        self._others: Counter[Action] = Counter()
        self._last: dict[Reading, int] = {}

    def read(self, found: Iterable[RuleFound], decisions: Decisions, table: int) -> None:
        """One reading of all rules; `table` is another number when the table was made anew."""
        last, self._last = self._last, {}
        grown: dict[str, Counter[Action]] = {}
        for rule in found:
            policy, action = decisions.get(rule.chain, {}).get(rule.comment, ("", Action.LOG))
            if rule.packets is None or not policy:
                continue
            at = (table, rule.chain, rule.handle)
            self._last[at] = rule.packets
            before = last.get(at, 0)
            step = rule.packets - before if rule.packets >= before else rule.packets
            grown.setdefault(policy, Counter())[action] += step
        self._name(grown)
        for policy, steps in grown.items():
            self._named.get(policy, self._others).update(steps)

    def _name(self, present: Mapping[str, Counter[Action]]) -> None:
        most = self._most()
        kept = [policy for policy in self._named if policy in present][:most]
        kept += [policy for policy in present if policy not in self._named][: most - len(kept)]
        self._named = {policy: self._named.get(policy, Counter()) for policy in kept}

    @property
    def named(self) -> list[tuple[str, Action, int]]:
        """Packets by policy and action."""
        return [(policy, action, count) for policy, counts in self._named.items() for action, count in counts.items()]

    @property
    def others(self) -> list[tuple[Action, int]]:
        """Packets by action, of all policies without sums of their own."""
        return list(self._others.items())
