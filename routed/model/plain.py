"""What the compiled decoders of stored resources (`unread_*`) share: the head of a manifest, and how they give up.

They take what is written today, as it is written today; of anything else they say nothing, so that the reader looks at it.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


class PlainMetadata(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """Of a resource of the whole cluster."""

    name: str
    uid: str | None = None
    resourceVersion: str | None = None
    creationTimestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class NotPlain(Exception):
    """The reader must look."""


def needed(found: T | None) -> T:
    """What was found. Raises NotPlain where nothing was."""
    if found is None:
        raise NotPlain
    return found
