"""The connection tracking table: how large it is, how long entries stay, how full it is, whose entries go with an address.

Sizes (`nf_conntrack_max`, `nf_conntrack_buckets`) are of the whole machine and can only be written in the initial network
namespace; elsewhere that is said, and the rest goes on. Timeouts are of the namespace. Nothing is restored at the end:
connections live longer than the daemon.

Invariant: nothing here raises where the kernel says no; what could not be done comes back as sentences.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import field

from routed.dataplane.exchange import Exchange, open_exchange
from routed.errors import KernelError
from routed.netlink.conntrack import Part, delete_entries
from routed.netlink.nftables import NETLINK_NETFILTER
from routed.values import dataclass

ROOT = "/proc/sys/net/netfilter"
STATISTICS = "/proc/net/stat/nf_conntrack"

#: Fullness at which a warning is due, and below which it is over.
WARN_AT = 0.80
CALM_BELOW = 0.70

#: Entries of one bucket on average, at most: more of them make every look-up slow.
MAX_CHAIN = 64

#: What an entry takes of the kernel's memory, at least, and a bucket.
ENTRY_OCTETS = 256
_BUCKET_OCTETS = 8

#: Seconds of a timeout every kernel takes: it counts them in its own ticks, up to 1,000 a second, in 31 bits.
MAX_TIMEOUT = 2_147_483

#: What `timeouts` may name: the kernel's sysctls without `nf_conntrack_`, in seconds.
TIMEOUTS = frozenset(
    {
        "generic_timeout", "gre_timeout", "gre_timeout_stream", "icmp_timeout", "icmpv6_timeout", "frag6_timeout",
        "sctp_timeout_closed", "sctp_timeout_cookie_echoed", "sctp_timeout_cookie_wait", "sctp_timeout_established",
        "sctp_timeout_heartbeat_sent", "sctp_timeout_shutdown_ack_sent", "sctp_timeout_shutdown_recd",
        "sctp_timeout_shutdown_sent", "tcp_timeout_close", "tcp_timeout_close_wait", "tcp_timeout_established",
        "tcp_timeout_fin_wait", "tcp_timeout_last_ack", "tcp_timeout_max_retrans", "tcp_timeout_syn_recv",
        "tcp_timeout_syn_sent", "tcp_timeout_time_wait", "tcp_timeout_unacknowledged", "udp_timeout",
        "udp_timeout_stream",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConntrackSettings:
    """What the table should be; None and an empty mapping leave things as they are."""

    maximum: int | None = None
    """nf_conntrack_max."""
    buckets: int | None = None
    """nf_conntrack_buckets."""
    timeouts: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Seconds by name, see TIMEOUTS."""


AS_IT_IS = ConntrackSettings()


@dataclass(frozen=True, slots=True)
class ConntrackUse:
    """How full the table is, and what was lost since boot."""

    entries: int
    """Of this namespace."""
    maximum: int
    """Of the machine."""
    dropped: int
    """Packets dropped since no entry could be made for them."""
    evicted: int
    """Entries given up early to make room."""
    insert_failed: int
    """Entries that lost a race against their like."""

    @property
    def fullness(self) -> float:
        return self.entries / self.maximum if self.maximum else 0.0


def tune(settings: ConntrackSettings, root: str = ROOT, memory: int | None = None) -> list[str]:
    """Set the sizes, buckets first, and timeouts; what could not be, or became another value, a sentence each.

    `memory`: octets of the machine, by default as the kernel says.
    """
    values = [("buckets", settings.buckets), ("max", settings.maximum), *sorted(settings.timeouts.items())]
    problems = []
    for name, value in values:
        if value is None:
            continue
        path = os.path.join(root, f"nf_conntrack_{name}")
        try:
            there = _read(path)
            if there == (_whole_pages(value) if name == "buckets" else value):
                continue
            problem = _nonsense(settings, name, value, there, root, memory)
            if not problem:
                with open(path, "w", encoding="ascii") as file:
                    file.write(str(value))
                if (became := _read(path)) != value:
                    problem = f"conntrack.{name}: the kernel made {became} of {value}"
        except ValueError:
            problem = f"conntrack: {path} holds no number"
        except OSError as error:
            problem = _refused(path, name, value, error)
        if problem:
            problems.append(problem)
    return problems


def _nonsense(settings: ConntrackSettings, name: str, value: int, there: int, root: str, memory: int | None) -> str:
    """Why a size cannot be meant, seen beside what this machine has, or empty."""
    if name == "max":
        octets = value * ENTRY_OCTETS
        if octets > (memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
            return (
                f"conntrack.max: {value} entries would take {octets >> 20} MiB, more memory than there is, so "
                f"nf_conntrack_max stays {there}; lower it"
            )
        buckets = _read(os.path.join(root, "nf_conntrack_buckets"))
        if value > MAX_CHAIN * buckets:
            return (
                f"conntrack.max: {value} is more than {MAX_CHAIN} times the kernel's {buckets} buckets, so "
                f"nf_conntrack_max stays {there}; set conntrack.buckets as well"
            )
    if name == "buckets" and settings.maximum is None:
        maximum = _read(os.path.join(root, "nf_conntrack_max"))
        if maximum > MAX_CHAIN * value:
            return (
                f"conntrack.buckets: {value} are too few for the kernel's nf_conntrack_max {maximum}, which may be "
                f"{MAX_CHAIN} times as much, so nf_conntrack_buckets stays {there}; set conntrack.max as well"
            )
    return ""


def _whole_pages(buckets: int) -> int:
    """The kernel's table has whole pages."""
    in_page = os.sysconf("SC_PAGE_SIZE") // _BUCKET_OCTETS
    return -(-buckets // in_page) * in_page


def _refused(path: str, name: str, value: int, error: OSError) -> str:
    size = name in ("max", "buckets")
    if error.errno == errno.ENOENT:
        return f"conntrack: there is no {path}; load nf_conntrack first (`modprobe nf_conntrack`)"
    if size and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"conntrack: {path} can only be written in the initial network namespace, so it does not become {value}; "
            "set it on the host"
        )
    return f"conntrack: cannot set {path} to {value}: {error.strerror}"


def use(root: str = ROOT, statistics: str = STATISTICS) -> ConntrackUse | None:
    """None where nothing is tracked."""
    try:
        entries = _read(os.path.join(root, "nf_conntrack_count"))
        maximum = _read(os.path.join(root, "nf_conntrack_max"))
    except (OSError, ValueError):
        return None
    lost = {"drop": 0, "early_drop": 0, "insert_failed": 0}
    try:
        with open(statistics, encoding="ascii") as file:
            names = file.readline().split()
            for line in file:  # one a processor, hexadecimal
                for name, value in zip(names, line.split(), strict=False):
                    if name in lost:
                        lost[name] += int(value, 16)
    except (OSError, ValueError):
        pass  # a kernel without CONFIG_NF_CONNTRACK_PROCFS counts them elsewhere
    return ConntrackUse(entries, maximum, lost["drop"], lost["early_drop"], lost["insert_failed"])


def _read(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


class FormerConnections:
    """Those of addresses that get another owner: who has one next would have the connections of who had it before,
    translated, and let through, as theirs were. Used by one thread at a time, on one socket, that of its namespace."""

    def __init__(self) -> None:
        self._exchange: Exchange | None = None

    def forget(self, addresses: Iterable[bytes]) -> str:
        """Remove the entries of connections that these addresses began or answered; why that cannot be done, or empty.

        A connection to one of them that is answered by another, where somebody's DNAT leads it there, is that one's. To look
        for entries the kernel walks through the whole table for each, unless this namespace has none.
        """
        try:
            if self._exchange is None:
                self._exchange = open_exchange(NETLINK_NETFILTER)
            exchange = self._exchange
            requests = [delete_entries(exchange.next(), part, each) for each in addresses for part in Part]
            exchange.ask_all(requests, "removing a former pod's connections")
        except KernelError as error:
            return "" if error.errno == errno.ENOENT else f"conntrack: {error}"
        except OSError as error:
            return f"conntrack: removing a former pod's connections: {error.strerror}"
        return ""

    def close(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None


class FullnessWatch:
    """Says once that the table gets full, and once that it is over."""

    def __init__(self) -> None:
        self.problem = ""
        """The sentence that holds now; empty while there is room."""

    def look(self, used: ConntrackUse | None) -> str:
        """What to say now; mostly nothing."""
        if used is None:
            return ""
        if not self.problem and used.fullness >= WARN_AT:
            self.problem = (
                f"conntrack: {used.entries} of {used.maximum} entries are in use; packets of new connections are dropped "
                "when it is full: raise conntrack.max"
            )
            return self.problem
        if self.problem and used.fullness < CALM_BELOW:
            self.problem = ""
            return f"conntrack: there is room again: {used.entries} of {used.maximum} entries are in use"
        return ""
