"""What is wrong with `datastore` of a configuration is said with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from routed.datastore.opening import open_store
from routed.errors import ConfigError

WRONG = [
    ("endpoints:\n    - https://10.0.0.5:2379\n    - 10.0.0.6:2379", 6, "datastore.endpoints[1]: must be http"),
    ("prefix: calico\n  endpoints: [http://10.0.0.5:2379]", 4, "datastore.prefix: must begin with"),
    ("endpoints: [http://10.0.0.5:2379]\n  caFile: /ca.pem", 5, "datastore.caFile: is for https"),
    ("endpoints: [https://10.0.0.5:2379]\n  certFile: /n.pem", 3, "datastore.keyFile: is required"),
    ("endpoints: [http://h:1]\n  massDelete:\n    hold: true\n    percnt: 3", 7, "datastore.massDelete.percnt: unknown key"),
    ("username: u\n  endpoints: [http://h:1]", 3, "datastore.passwordFile: is required"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "line", "message"), WRONG)
def test_the_line_of_what_is_wrong_is_named(tmp_path: Path, keys: str, line: int, message: str) -> None:
    file = tmp_path / "routed.yaml"
    file.write_text(f"nodeName: n1\ndatastore:\n  type: etcd\n  {keys}\n")
    with pytest.raises(ConfigError) as error:
        open_store(str(file), yaml.safe_load(file.read_text()))
    assert str(error.value).startswith(f"{file}:{line}: {message}")


def test_a_folder_that_is_not_named_and_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "routed.yaml"
    file.write_text("datastore:\n  type: file\n")
    with pytest.raises(ConfigError, match=r"routed.yaml:2: datastore.path: is required"):
        open_store(str(file), yaml.safe_load(file.read_text()))
    monkeypatch.setenv("DATASTORE_TYPE", "consul")
    file.write_text("datastore: {path: .}\n")
    with pytest.raises(ConfigError, match=r"routed.yaml: DATASTORE_TYPE: must be file or etcd"):
        open_store(str(file), yaml.safe_load(file.read_text()))
