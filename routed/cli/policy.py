"""Commands about policy: `policy explain` says why a connection is let through or not, `policy test` runs expectations.

Both judge from the datastore, every node on the way, without a daemon; `explain` also asks the daemon what this node's
kernel has of it, and says where that differs. The engine's modules are loaded when a command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from routed.cli.command import Commands, ExitStatus, Row, UsageError, ask, configuration, show_one
from routed.cli.stored import complain, with_store
from routed.cli.tables import table, terminal_width
from routed.control.client import Unreachable
from routed.errors import ConfigError, ControlError
from routed.observe.logs import harmless

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}


def add(commands: Commands) -> None:
    commands.group("policy", "why connections are allowed or denied")
    explain = commands.add(
        "policy explain",
        _explain,
        "whether a connection is let through, which policy and rule decide, and what the kernel has of it",
        examples=[
            ("routedctl policy explain --from shop/web --to shop/api --port 8080", "between two pods"),
            ("routedctl policy explain --from shop/api --to 10.0.0.53 --port 53 --proto udp", "to an address"),
        ],
    )
    explain.add_argument("--from", dest="source", required=True, metavar="NS/POD|IP|NODE", help="who opens it")
    explain.add_argument("--to", dest="destination", required=True, metavar="NS/POD|IP|NODE", help="to whom")
    explain.add_argument("--port", required=True, metavar="N", help="destination port, or the name of one of the pod")
    explain.add_argument("--proto", default="tcp", metavar="P", help="tcp (if not given), udp, sctp, or a number")
    test = commands.add(
        "policy test",
        _test,
        "run expectations (from, to, port, proto, verdict) against the policies in the datastore",
        examples=[("routedctl policy test expectations.yaml", "one line for each that fails")],
    )
    test.add_argument("file", metavar="FILE", help="YAML: a list of {from, to, port, proto, verdict}")


def _verdicts(arguments: argparse.Namespace) -> Any:
    from routed.policy.verdicts import Verdicts  # noqa: PLC0415 - see the module's docstring

    contents = with_store(arguments, lambda store: store.read())
    complain(contents.problems)
    _, config = configuration(arguments, "so the datastore is not known")
    said = config.get("interfacePrefix")
    prefixes = tuple(each.strip() for each in said.split(",") if each.strip()) if isinstance(said, str) else ()
    return Verdicts((stored.resource for stored in contents.resources.values()), contents.broken, prefixes)


def _protocol(text: str) -> int:
    number = PROTOCOLS.get(text.upper(), int(text) if text.isdigit() else 256)
    if number > 255:
        raise UsageError(f"a protocol is tcp, udp, sctp or a number, not {text!r}")
    return number


def _port(verdicts: Any, to: Any, text: str, protocol: int) -> int:
    if text.isdigit() and int(text) < 65536:
        return int(text)
    port = verdicts.port(to, text, protocol)
    if port is None:
        raise UsageError(f"{to.text} has no port of the name {text!r}, and it is no number below 65536")
    return int(port)


def _explain(arguments: argparse.Namespace) -> int:
    from routed.net.addresses import format_address  # noqa: PLC0415
    from routed.policy.judge import described  # noqa: PLC0415

    verdicts = _verdicts(arguments)
    source, destination = verdicts.party(arguments.source), verdicts.party(arguments.destination)
    protocol = _protocol(arguments.proto)
    port = _port(verdicts, destination, arguments.port, protocol)
    verdict = verdicts.judge(source, destination, protocol, port)
    packet = verdict.packet
    answer: Row = {
        "from": source.text,
        "to": destination.text,
        "source": format_address(packet.source),
        "destination": format_address(packet.destination),
        "protocol": protocol,
        "port": port,
        "verdict": "allow" if verdict.admitted else "deny",
        "reason": verdict.crossings[-1][1].reason if verdict.crossings else "no node judges it",
        "nodes": [
            {
                "node": node,
                "verdict": "allow" if judgement.admitted else "deny",
                "reason": judgement.reason,
                "steps": [described(step) for step in judgement.steps],
            }
            for node, judgement in verdict.crossings
        ],
    }
    asked = {name: str(answer[name]) for name in ("source", "destination", "protocol", "port")}
    try:
        answer["kernel"] = ask(arguments, "policy", **asked)
    except (Unreachable, ControlError) as error:
        answer["kernel"] = None
        answer["kernelNot"] = str(error)
    answer["disagreements"] = list(_disagreements(answer))
    show_one(arguments, answer, explanation)
    return ExitStatus.ERROR if answer["disagreements"] else ExitStatus.OK


def _disagreements(answer: Row) -> Iterator[str]:
    kernel = answer["kernel"]
    if kernel is None:
        return
    yield from kernel["differences"]
    for node in answer["nodes"]:
        if node["node"] == kernel["node"] and (node["verdict"], node["reason"]) != (
            kernel["verdict"],
            kernel["reason"],
        ):
            yield (
                f"the datastore says {node['verdict']} ({node['reason']}), and {kernel['node']} was told "
                f"{kernel['verdict']} ({kernel['reason']})"
            )


def explanation(answer: Row) -> Iterator[str]:
    """`routedctl policy explain`."""
    names = {number: name for name, number in PROTOCOLS.items()}
    protocol = names.get(answer["protocol"], f"protocol {answer['protocol']}")
    yield harmless(
        f"{answer['from']} ({answer['source']}) -> {answer['to']} ({answer['destination']}) "
        f"{protocol} port {answer['port']}: {answer['verdict']}, by {answer['reason']}"
    )
    for node in answer["nodes"]:
        yield harmless(f"node {node['node']}: {node['verdict']}")
        steps = (
            (f"  {step['direction']}", step["interface"], step["tier"], step["action"], step["rule"])
            for step in node["steps"]
        )
        if node["steps"]:
            yield from table(("  Direction", "Interface", "Tier", "Does", "Rule"), steps, width=terminal_width())
        else:
            yield "  no policy is asked there"
    kernel = answer["kernel"]
    if kernel is None:
        yield harmless(f"the kernel was not asked: {answer['kernelNot']}")
        return
    yield harmless(f"the kernel of {kernel['node']}:")
    rules = (
        (f"  {chain['chain']}", rule["packets"], rule["bytes"], rule["rule"])
        for chain in kernel["chains"]
        for rule in chain["rules"]
    )
    yield from table(("  Chain", "Packets", "Bytes", "Rule"), rules, right=frozenset({"Packets", "Bytes"}))
    for text in answer["disagreements"]:
        yield harmless(f"DISAGREES: {text}")
    if not answer["disagreements"]:
        yield "  it has what was computed"


# ---- expectations

_FIELDS = {"from", "to", "port", "proto", "verdict"}


def _test(arguments: argparse.Namespace) -> int:
    expectations = _expectations(arguments.file)
    verdicts = _verdicts(arguments)
    failures: list[str] = []
    for where, expected in expectations:
        source, destination = verdicts.party(expected["from"]), verdicts.party(expected["to"])
        protocol = _protocol(expected["proto"])
        port = _port(verdicts, destination, expected["port"], protocol)
        verdict = verdicts.judge(source, destination, protocol, port)
        said = "allow" if verdict.admitted else "deny"
        if said != expected["verdict"]:
            reason = verdict.crossings[-1][1].reason if verdict.crossings else "no node judges it"
            failures.append(
                f"{where}: {expected['from']} -> {expected['to']} {expected['proto']}/{expected['port']}: "
                f"expected {expected['verdict']}, it is {said}, by {reason}"
            )
    show_one(arguments, {"tried": len(expectations), "failures": failures}, tested)
    return ExitStatus.ERROR if failures else ExitStatus.OK


def _expectations(path: str) -> list[tuple[str, dict[str, str]]]:
    """Raises ConfigError with the line of what is wrong."""
    from routed.datastore.documents import read_documents  # noqa: PLC0415

    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror}") from None
    found: list[tuple[str, dict[str, str]]] = []
    for document in read_documents(data):
        if document.error:
            raise ConfigError(f"{path}:{document.line}", document.error)
        entries = document.value if isinstance(document.value, list) else [document.value]
        for number, entry in enumerate(entries):
            where = f"{path}:{document.line_of(f'[{number}]')}"
            if not isinstance(entry, dict) or not _FIELDS - {"proto"} <= entry.keys() <= _FIELDS:
                raise ConfigError(where, "an expectation has from, to, port, verdict, and proto if it is not tcp")
            texts = {name: str(value) for name, value in ({"proto": "tcp"} | entry).items()}
            if texts["verdict"] not in ("allow", "deny"):
                raise ConfigError(where, f"verdict: must be allow or deny, not {texts['verdict']!r}")
            found.append((where, texts))
    if not found:
        raise ConfigError(path, "there are no expectations in it")
    return found


def tested(answer: Row) -> Iterator[str]:
    """`routedctl policy test`."""
    for failure in answer["failures"]:
        yield harmless(f"FAILED {failure}")
    yield f"{answer['tried']} expectations, {len(answer['failures'])} failed"
