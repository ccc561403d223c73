"""What is counted of a neighbour, over all its connections: messages, errors, why sessions ended.

Plain numbers, kept where things happen. Not here: prefixes (`rib`), what is made of the numbers (`core.queries`, metrics).
"""

from __future__ import annotations

import enum

from routed.bgp.messages import Notification


class DownReason(enum.StrEnum):
    """Why an Established session ended, in a word; the sentence is `last_down_reason`."""

    HOLD_TIMER_EXPIRED = "hold_timer_expired"
    SEND_HOLD_TIMER_EXPIRED = "send_hold_timer_expired"
    NOTIFICATION_RECEIVED = "notification_received"
    PROTOCOL_ERROR = "protocol_error"
    """The peer broke a rule and was sent a NOTIFICATION."""
    CONNECTION_LOST = "connection_lost"
    """TCP broke, was closed by the peer, or was replaced by a new connection of the peer's (RFC 4724 4.2)."""
    INTERFACE_DOWN = "interface_down"
    """The link to a directly connected external peer went down."""
    ADMINISTRATIVE = "administrative"
    """Shut down here, by the configuration or because routed stops."""
    CONFIGURATION_CHANGED = "configuration_changed"
    RESET = "reset"
    """`routedctl clear`."""


class Counters:
    """What happened on all connections of a neighbour. Plain numbers; times are monotonic seconds."""

    __slots__ = (
        "attribute_discards",
        "connect_attempts",
        "connections_accepted",
        "connections_refused",
        "downs",
        "established",
        "established_at",
        "keepalives_received",
        "keepalives_sent",
        "last_down_reason",
        "last_error",
        "last_error_at",
        "last_finding",
        "notifications",
        "notifications_received",
        "notifications_sent",
        "opens_received",
        "opens_sent",
        "refreshes_received",
        "refreshes_sent",
        "refusal",
        "refusal_at",
        "state_changed_at",
        "treat_as_withdraw",
        "updates_received",
        "updates_sent",
    )

    def __init__(self) -> None:
        self.opens_received = self.opens_sent = 0
        self.updates_received = 0
        self.updates_sent = 0
        """Counted by the owner of the Adj-RIB-Out: UPDATEs don't pass through here."""
        self.notifications_received = self.notifications_sent = 0
        self.keepalives_received = self.keepalives_sent = 0
        self.refreshes_received = self.refreshes_sent = 0
        self.treat_as_withdraw = 0
        """UPDATEs whose routes were withdrawn for an error (RFC 7606)."""
        self.attribute_discards = 0
        """UPDATEs with an attribute that was discarded for an error, but no worse one."""
        self.connect_attempts = 0
        self.connections_accepted = 0
        self.connections_refused = 0
        self.established = 0
        """How often the session came up."""
        self.downs: dict[DownReason, int] = {}
        """How often an Established session ended, by reason."""
        self.notifications: dict[tuple[str, int, int], int] = {}
        """NOTIFICATIONs by (`sent` or `received`, code, subcode)."""
        self.established_at: float | None = None
        self.state_changed_at: float | None = None
        self.last_down_reason = ""
        """Why the last Established session ended."""
        self.last_error = ""
        """The last thing that went wrong, Established or not."""
        self.last_error_at: float | None = None
        self.refusal = ""
        """Why the session was last refused with a NOTIFICATION, by either side, since it was up; what goes wrong when it is
        tried again does not hide it: who was told an error may close what comes next without a word for minutes."""
        self.refusal_at: float | None = None
        self.last_finding = ""
        """What was wrong with the last malformed UPDATE that did not end the session."""

    def went_wrong(self, what: str, now: float) -> None:
        self.last_error, self.last_error_at = what, now

    def count_notification(self, direction: str, notification: Notification) -> None:
        key = (direction, notification.code, notification.subcode)
        self.notifications[key] = self.notifications.get(key, 0) + 1

    def as_dict(self) -> dict[str, object]:
        """The message counters, JSON-ready."""
        return {
            "received": {
                "open": self.opens_received,
                "update": self.updates_received,
                "notification": self.notifications_received,
                "keepalive": self.keepalives_received,
                "routeRefresh": self.refreshes_received,
            },
            "sent": {
                "open": self.opens_sent,
                "update": self.updates_sent,
                "notification": self.notifications_sent,
                "keepalive": self.keepalives_sent,
                "routeRefresh": self.refreshes_sent,
            },
            "treatAsWithdraw": self.treat_as_withdraw,
            "attributeDiscard": self.attribute_discards,
            "lastFinding": self.last_finding,
        }
