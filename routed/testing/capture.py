"""What a router puts on a wire, as Wireshark reads it: captured from the first packet on, judged by tshark afterwards.

    capture = Capture(node, "eth0", "10.0.0.1", "fd00::1")   # before anything speaks
    ...
    capture.judge()                                          # raises AssertionError with all that tshark complains of

Invariants:
- Nothing passes for want of packets: a capture that lost some, or has no BGP message from one of the addresses, fails.
- Only what was sent from `addresses` is judged, and only as BGP: how TCP carried it is the kernel's business.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
from collections import Counter
from pathlib import Path

from routed.testing.lab import Namespace, run, wait_for

PROGRAMS = ("dumpcap", "tshark")

#: Type of a message -> its name.
NAMES = {1: "OPEN", 2: "UPDATE", 3: "NOTIFICATION", 4: "KEEPALIVE", 5: "ROUTE-REFRESH"}

#: For experiments within one network (IEEE 802), and the frame of it that is the last of a capture.
ETHERTYPE = 0x88B5
LAST = bytes(12) + ETHERTYPE.to_bytes(2, "big") + b"the end of this capture".ljust(46, b".")

_COMPLAINT = re.compile(r"\s+(\d+)\s+(\S+)\s+(\S+)\s{2,}(.*)")


def missing() -> list[str]:
    """Which of the programs a capture needs are not installed here."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class Capture:
    """All BGP these addresses send by one interface of a namespace, from the moment it is made."""

    def __init__(self, namespace: Namespace, interface: str, *addresses: str) -> None:
        self.addresses = addresses
        self.judged = False
        self.file = namespace.folder / f"{interface}.pcapng"
        self._namespace, self._interface = namespace, interface
        ours = " or ".join(f"src host {address}" for address in addresses)
        wanted = f"(tcp port 179 and ({ours})) or ether proto {ETHERTYPE:#x}"
        argv = ("dumpcap", "-q", "-i", interface, "-B", "32", "-f", wanted, "-w", str(self.file))
        self._dumpcap = namespace.start(f"dumpcap-{interface}", *argv)
        wait_for(lambda: "File:" in self._dumpcap.text(), 30, "the capture runs", state=self._dumpcap.text)

    def stop(self) -> None:
        """End the capture; the file is complete afterwards."""
        if not self._dumpcap.alive:
            return
        # what the kernel still holds when dumpcap is told to end is lost: a last frame goes through first
        with self._namespace.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as last:
            last.bind((self._interface, 0))
            last.send(LAST)
        wait_for(lambda: LAST in self.file.read_bytes(), 30, "all that was captured is written")
        self._dumpcap.signal(signal.SIGINT)
        self._dumpcap.wait()

    def judge(self) -> dict[str, Counter[str]]:
        """End the capture and fail for whatever is wrong in it. Messages by address and type where nothing is."""
        self.judged = True
        self.stop()
        said = self._dumpcap.text()
        lost = re.search(r"received/dropped on interface .*: \d+/(\d+)", said)
        assert lost is not None and lost[1] == "0", f"the capture is not complete: {said}"
        messages, complaints = _read(self.file, self.addresses)
        unheard = [address for address in self.addresses if not messages[address]]
        assert not unheard, f"no BGP message of {', '.join(unheard)} was captured"
        assert not complaints, "\n".join([*complaints, _where(self.file, self.addresses)])
        return messages


def _read(file: Path, addresses: tuple[str, ...]) -> tuple[dict[str, Counter[str]], list[str]]:
    """Messages by address and type, and what tshark complains of in them."""
    text = run(
        *("tshark", "-n", "-r", str(file), "-Y", f"bgp and ({_sent_by(addresses)})"),
        *("-T", "fields", "-e", "ip.src", "-e", "ipv6.src", "-e", "bgp.type"),
        *("-z", f"expert,warn,{_sent_by(addresses)}"),
    )
    messages: dict[str, Counter[str]] = {address: Counter() for address in addresses}
    complaints = []
    for line in text.splitlines():
        if line.count("\t") == 2:
            four, six, kinds = line.split("\t")
            messages[four or six].update(NAMES[int(kind)] for kind in kinds.split(",") if kind)
        elif match := _COMPLAINT.fullmatch(line):
            count, group, protocol, summary = match.groups()
            if protocol != "TCP":  # a reset, a full window: no matter of what we say
                complaints.append(f"tshark, {count} times: {protocol} {group}: {summary.strip()}")
    return messages, complaints


def _sent_by(addresses: tuple[str, ...]) -> str:
    return " or ".join(f"{'ipv6' if ':' in each else 'ip'}.src == {each}" for each in addresses)


def _where(file: Path, addresses: tuple[str, ...]) -> str:
    """The first packet tshark complains of, in full."""
    bad = f"bgp and ({_sent_by(addresses)}) and (_ws.malformed or _ws.expert.severity >= 0x600000)"
    return run("tshark", "-n", "-r", str(file), "-Y", bad, "-O", "bgp")[:4000]
