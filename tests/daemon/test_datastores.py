"""What a daemon imports: gRPC and the HTTP client only where etcd or the Kubernetes API is asked for."""

from __future__ import annotations

import subprocess
import sys


def test_a_daemon_on_a_folder_imports_no_client_of_etcd_or_of_kubernetes():
    """They are 18 MiB and 0.2 s of a start."""
    found = subprocess.run(
        [sys.executable, "-c", "import sys, routed.daemon.daemon; print({'grpc', 'httpx'} & set(sys.modules))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "set()"
