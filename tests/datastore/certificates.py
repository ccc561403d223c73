"""Certificates made with openssl: an authority's, what it signs, and what is no longer valid."""

from __future__ import annotations

import subprocess
from pathlib import Path

_NEW = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

#: What `openssl ca` wants to be told, the only one that knows of a first day.
_AUTHORITY = """\
[ca]
default_ca = this
[this]
database = index.txt
new_certs_dir = .
serial = serial.txt
default_md = sha256
policy = names
[names]
commonName = supplied
"""


class Authority:
    """Signs certificates. All files are `NAME.pem` and `NAME.key` in one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self.file = str(folder / f"{name}.pem")
        self._openssl(
            *_NEW, "-x509", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "2"
        )

    def sign(
        self, name: str, *, alternative: str = "DNS:localhost,IP:127.0.0.1", days: int = 2, starts: str = ""
    ) -> tuple[str, str]:
        """The paths of a certificate and of its key. With negative days it was never valid; it `starts` now, or then."""
        self._openssl(*_NEW, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (self._folder / f"{name}.ext").write_text(f"subjectAltName={alternative}\n")
        if starts:
            (self._folder / "index.txt").touch()
            (self._folder / "ca.cnf").write_text(_AUTHORITY)
            self._openssl(
                "ca", "-batch", "-config", "ca.cnf", "-cert", f"{self._name}.pem", "-keyfile", f"{self._name}.key",
                "-in", f"{name}.csr", "-out", f"{name}.pem", "-startdate", starts, "-days", str(days), "-create_serial",
                "-notext", "-extfile", f"{name}.ext",
            )  # fmt: skip
        else:
            self._openssl(
                "x509", "-req", "-in", f"{name}.csr", "-CA", f"{self._name}.pem", "-CAkey", f"{self._name}.key",
                "-CAcreateserial", "-out", f"{name}.pem", "-days", str(days), "-extfile", f"{name}.ext",
            )  # fmt: skip
        return str(self._folder / f"{name}.pem"), str(self._folder / f"{name}.key")

    def _openssl(self, *argv: str) -> None:
        subprocess.run(["openssl", *argv], cwd=self._folder, check=True, capture_output=True)
