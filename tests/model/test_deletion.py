"""How a resource says that it is about to be deleted."""

from __future__ import annotations

import pytest

from routed.model.deletion import announced, is_announced
from routed.model.paths import Layout, encode
from routed.model.schema import parse_manifest
from tests.model.test_schema import ALL


@pytest.mark.parametrize("kind", sorted(ALL))
def test_every_kind_but_the_allocator_s_settings_can_say_it_in_etcd(kind: str) -> None:
    """And it is still read there as the same resource."""
    resource = parse_manifest(ALL[kind])
    going = announced(resource, "2026-05-01T10:00:00Z")
    assert (going is None) == (kind == "IPAMConfig")
    if going is None:
        return
    assert going.key == resource.key
    layout = Layout()
    path = layout.path(going)
    read = layout.decode(path, encode(going, path))
    assert read is not None and is_announced(read.resource) and not read.unknown
    assert going.manifest.get("status") == resource.manifest.get("status")
