"""How bad a finding in an UPDATE is, and what a decode reports (RFC 7606).

A decode returns findings, it does not stop at the first one; the strongest decides (RFC 7606 section 3 (h)).
"""

from __future__ import annotations

import enum

from routed.values import dataclass


class Severity(enum.IntEnum):
    """What to do about a malformed UPDATE, weakest first (RFC 7606 section 2)."""

    ATTRIBUTE_DISCARD = 1
    TREAT_AS_WITHDRAW = 2
    SESSION_RESET = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with an UPDATE."""

    severity: Severity
    attribute: int
    """Attribute type code, or 0 where it is about the message."""
    text: str
    """A sentence for people, quoting the RFC section. Never contains peer-supplied text."""
