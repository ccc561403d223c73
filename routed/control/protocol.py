"""The control socket's wire form: one JSON object a line, in both directions.

    request   {"version": 1, "request": "routes", "arguments": {"all": true}}
    reply     {"version": 1, "result": VALUE}
    or        {"version": 1, "items": [VALUE, ...]}   any number of these lines, then
              {"version": 1, "result": null}
    or        {"version": 1, "error": "one sentence"}

A reply ends with its `result` or `error` line; an `error` may follow `items` where a long answer broke off. Requests on
one connection are answered in order. An answer that is followed has no end: `items` lines, empty ones among them, come
until the client closes. A line is UTF-8 and ends with a line feed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import field
from typing import TypeAlias

from routed.errors import ControlError
from routed.values import dataclass

VERSION = 1

DEFAULT_RUN_DIR = "/run/routed"
SOCKET_NAME = "routed.sock"

#: Octets of a request, its line feed included.
MAX_REQUEST = 65536

#: Octets of one reply line; a batch of items is far smaller, a `result` is one answer about this node.
MAX_REPLY = 64 * 1024 * 1024

JsonObject: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class Request:
    """One question and its arguments, by name."""

    name: str
    arguments: JsonObject = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """An optional text argument. Raises ControlError where it is something else."""
        value = self.arguments.get(name)
        if value is None or isinstance(value, str):
            return value
        raise ControlError(f"argument `{name}` of request `{self.name}` must be text")

    def flag(self, name: str) -> bool:
        """An optional true/false argument, false unless given. Raises ControlError where it is something else."""
        value = self.arguments.get(name, False)
        if isinstance(value, bool):
            return value
        raise ControlError(f"argument `{name}` of request `{self.name}` must be true or false")


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply line: part of an answer (`items`), its end (`result`), or why there is none (`error`)."""

    result: object = None
    items: list[object] | None = None
    error: str | None = None


def encode_request(request: Request) -> bytes:
    return _line({"version": VERSION, "request": request.name, "arguments": request.arguments})


def decode_request(line: bytes) -> Request:
    """A request from its line. Raises ControlError with a sentence for whoever wrote it."""
    message = _object(line, "request")
    name = message.get("request")
    arguments = message.get("arguments", {})
    if not isinstance(name, str):
        raise ControlError("a request needs a field `request` with its name")
    if not isinstance(arguments, dict):
        raise ControlError("`arguments` of a request must be an object")
    return Request(name, arguments)


def encode_result(result: object) -> bytes:
    return _line({"version": VERSION, "result": result})


def encode_items(items: Sequence[object]) -> bytes:
    return _line({"version": VERSION, "items": items})


def encode_error(text: str) -> bytes:
    return _line({"version": VERSION, "error": text})


def decode_reply(line: bytes) -> Reply:
    """A reply line. Raises ControlError where it is none."""
    message = _object(line, "reply")
    error = message.get("error")
    if error is not None:
        return Reply(error=str(error))
    if "items" in message:
        items = message["items"]
        if not isinstance(items, list):
            raise ControlError("the daemon's reply is not understood: `items` is no list")
        return Reply(items=items)
    if "result" not in message:
        raise ControlError("the daemon's reply is not understood: it holds neither result nor error")
    return Reply(result=message["result"])


def _line(message: JsonObject) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes, what: str) -> JsonObject:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ControlError(f"this {what} is not JSON") from None
    if not isinstance(message, dict):
        raise ControlError(f"a {what} must be a JSON object")
    version = message.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ControlError(
            f"this {what} has version {json.dumps(version)}, expected {VERSION}: routed and routedctl differ in version"
        )
    return message
