"""The place of a key of routed.yaml is its line, or that of the nearest thing around it that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from routed.datastore.config_lines import place_of_key

WRITTEN = """\
nodeName: n1
datastore:
  type: etcd
  endpoints:
    - https://10.0.0.5:2379
    - https://10.0.0.6:2379
kubernetes: {kubeconfig: /k}
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("nodeName", ":1"),
        ("datastore.type", ":3"),
        ("datastore.endpoints[1]", ":6"),
        ("kubernetes.kubeconfig", ":7"),
        ("datastore.endpoints[2]", ":5"),  # where the list is
        ("datastore.path", ":3"),  # where the mapping is
        ("nodeName.path", ":1"),
        ("secrets.dir", ""),
        ("DATASTORE_TYPE", ""),
    ],
)
def test_a_key_s_line_or_that_of_what_it_is_missing_in(tmp_path: Path, key: str, line: str) -> None:
    file = tmp_path / "routed.yaml"
    file.write_text(WRITTEN)
    assert place_of_key(str(file), key) == f"{file}{line}"


@pytest.mark.parametrize("written", [None, "", "[", "- a\n", "[" * 500, "\0", "datastore"])
def test_a_file_that_is_another_meanwhile_has_no_line(tmp_path: Path, written: str | None) -> None:
    file = tmp_path / "routed.yaml"
    if written is not None:
        file.write_text(written)
    assert place_of_key(str(file), "datastore.path") == str(file)
