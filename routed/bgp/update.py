"""UPDATE messages as the RIB wants them (skeleton; the decoder to follow)."""

from __future__ import annotations

from routed.bgp.attributes import AttributeSet
from routed.bgp.errors import Finding
from routed.net.families import Family


class Reach:
    """Prefixes announced with one attribute set. Prefixes are canonical wire prefixes, in message order, duplicates allowed."""

    __slots__ = ("attrs", "family", "prefixes")

    def __init__(self, family: Family, attrs: AttributeSet, prefixes: list[bytes] | tuple[bytes, ...]) -> None:
        self.family = family
        self.attrs = attrs
        self.prefixes = prefixes


class Update:
    """One decoded UPDATE. Withdrawals apply before announcements (RFC 4271 4.3). Treat-as-withdraw is already applied."""

    __slots__ = ("end_of_rib", "findings", "reach", "withdrawn")

    def __init__(
        self,
        reach: tuple[Reach, ...] = (),
        withdrawn: tuple[tuple[Family, list[bytes] | tuple[bytes, ...]], ...] = (),
        end_of_rib: Family | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> None:
        self.reach = reach
        self.withdrawn = withdrawn
        self.end_of_rib = end_of_rib
        self.findings = findings
