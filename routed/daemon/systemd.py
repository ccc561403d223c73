"""What systemd is told (sd_notify(3)): starting, ready, reloading, alive, stopping. Nothing at all outside of systemd."""

from __future__ import annotations

import contextlib
import os
import socket
import time


class Notifier:
    """Sends to $NOTIFY_SOCKET, once $WATCHDOG_USEC is known also how often."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_interval = _watchdog_interval()
        """Seconds between two `alive`, or None where nobody waits for them."""

    def starting(self, status: str, seconds: float) -> None:
        """Not ready yet, but at work: systemd waits this much longer from now on, whatever the unit's timeout."""
        self._send(f"EXTEND_TIMEOUT_USEC={seconds * 1e6:.0f}\nSTATUS={status}")

    def ready(self, status: str) -> None:
        """MAINPID tells it who we are also where a wrapper started us (with NotifyAccess=all)."""
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def alive(self, status: str) -> None:
        self._send(f"WATCHDOG=1\nSTATUS={status}")

    def stopping(self, status: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={status}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A supervisor that can't be reached is no reason to stop routing.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
        ):
            sock.setblocking(False)
            sock.sendto(text.encode(), self._address)


def _watchdog_interval() -> float | None:
    """A third of what systemd waits for; None where it does not wait, or waits for another process."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or int(microseconds) == 0:
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 3e6
