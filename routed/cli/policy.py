"""Commands about policy: `policy explain` says why a connection is let through or not, `policy test` runs expectations.

Both judge from the datastore, every node on the way, without a daemon; `explain` also asks the daemon what this node's
kernel has of it, and says where that differs. The engine's modules are loaded when a command runs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import Any

from routed.cli.command import Commands, ExitStatus, Row, UsageError, ask, configuration, show_one
from routed.cli.stored import complain, with_store
from routed.cli.tables import table, terminal_width
from routed.control.client import Unreachable
from routed.errors import ConfigError, ControlError
from routed.observe.logs import harmless

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1, "ICMPV6": 58, "UDPLITE": 136}
#: What a ping asks, by protocol.
_ECHO = {1: 8, 58: 128}
#: TCP, UDP, DCCP, SCTP, UDPLite.
_WITH_PORTS = frozenset((6, 17, 33, 132, 136))
#: Which version of IP each is carried by.
_ICMP_FAMILY = {1: "ipv4", 58: "ipv6"}
_FAMILIES = ("ipv4", "ipv6")
_NUMBER = re.compile("[0-9]{1,9}")


def add(commands: Commands) -> None:
    commands.group("policy", "why connections are allowed or denied")
    explain = commands.add(
        "policy explain",
        _explain,
        "whether a connection is let through, which policy and rule decide, and what the kernel has of it",
        examples=[
            ("routedctl policy explain --from shop/web --to shop/api --port 8080", "between two pods"),
            ("routedctl policy explain --from shop/api --to 10.0.0.53 --port 53 --proto udp", "to an address"),
            ("routedctl policy explain --from shop/web --to shop/api --proto icmp", "a ping"),
        ],
    )
    explain.add_argument("--from", dest="source", required=True, metavar="NS/POD|IP|NODE", help="who opens it")
    explain.add_argument("--to", dest="destination", required=True, metavar="NS/POD|IP|NODE", help="to whom")
    explain.add_argument("--port", metavar="N", help="destination port, or the name of one of the pod")
    explain.add_argument(
        "--proto", default="tcp", metavar="P", help="tcp (if not given), udp, sctp, udplite, icmp, icmpv6, or a number"
    )
    explain.add_argument("--source-port", metavar="N", help="if a rule asks for it; 32768 where it is not given")
    explain.add_argument("--icmp-type", metavar="N", help="of icmp and icmpv6; a ping's where it is not given")
    explain.add_argument("--icmp-code", metavar="N", help="0 where it is not given")
    explain.add_argument(
        "--family", choices=_FAMILIES, help="which of their addresses; the first both have where it is not given"
    )
    test = commands.add(
        "policy test",
        _test,
        "run expectations (from, to, port or icmpType, proto, verdict) against the policies in the datastore",
        examples=[("routedctl policy test expectations.yaml", "one line for each that fails")],
    )
    test.add_argument(
        "file", metavar="FILE", help="YAML: a list of {from, to, port or icmpType, proto, family, verdict}"
    )


def _verdicts(arguments: argparse.Namespace) -> Any:
    from routed.policy.verdicts import Verdicts  # noqa: PLC0415 - see the module's docstring

    contents = with_store(arguments, lambda store: store.read())
    complain(contents.problems)
    _, config = configuration(arguments, "so the datastore is not known")
    said = config.get("interfacePrefix")
    prefixes = tuple(each.strip() for each in said.split(",") if each.strip()) if isinstance(said, str) else ()
    return Verdicts((stored.resource for stored in contents.resources.values()), contents.broken, prefixes)


def _protocol(text: str) -> int:
    number = PROTOCOLS.get(text.upper(), int(text) if _NUMBER.fullmatch(text) else 256)
    if number > 255:
        raise UsageError(f"a protocol is tcp, udp, sctp, udplite, icmp, icmpv6 or a number, not {text!r}")
    return number


def _port(verdicts: Any, to: Any, text: str, protocol: int) -> int:
    if _NUMBER.fullmatch(text) and int(text) < 65536:
        return int(text)
    port = verdicts.port(to, text, protocol)
    if port is None:
        raise UsageError(f"{to.text} has no port of the name {text!r}, and it is no number below 65536")
    return int(port)


def _asked(verdicts: Any, to: Any, said: Mapping[str, str | None]) -> Any:
    """What is sent, by `proto`, `port`, `sourcePort`, `icmpType` and `icmpCode`. Raises UsageError."""
    from routed.desired_policy import Icmp  # noqa: PLC0415
    from routed.policy.verdicts import SOURCE_PORT, Asked  # noqa: PLC0415

    protocol = _protocol(said.get("proto") or "tcp")
    port, kind, code = said.get("port"), said.get("icmpType"), said.get("icmpCode")
    if protocol in _ECHO:
        if port is not None or said.get("sourcePort") is not None:
            raise UsageError("icmp and icmpv6 have a type and a code, and no ports")
        return Asked(protocol, icmp=Icmp(_number(kind, _ECHO[protocol], 255, "type"), _number(code, 0, 255, "code")))
    if kind is not None or code is not None:
        raise UsageError("only icmp and icmpv6 have a type and a code")
    if protocol not in _WITH_PORTS:
        if port is not None or said.get("sourcePort") is not None:
            raise UsageError(f"protocol {protocol} has no ports")
        return Asked(protocol)
    if port is None:
        raise UsageError("say to which port")
    source = _number(said.get("sourcePort"), SOURCE_PORT, 65535, "source port")
    return Asked(protocol, _port(verdicts, to, port, protocol), source)


def _judged(verdicts: Any, source: Any, destination: Any, asked: Any, said: str | None) -> Any:
    """The verdict; `said` is the family asked for. Raises UsageError where it cannot be this protocol's."""
    from routed.net.families import Family  # noqa: PLC0415

    of_protocol = _ICMP_FAMILY.get(asked.protocol)
    if of_protocol and said not in (None, of_protocol):
        raise UsageError(f"the ICMP of {said} is {'icmpv6' if said == 'ipv6' else 'icmp'}")
    family = {None: None, "ipv4": Family.IPV4_UNICAST, "ipv6": Family.IPV6_UNICAST}[of_protocol or said]
    return verdicts.judge(source, destination, asked, family)


def _number(text: str | None, otherwise: int, most: int, what: str) -> int:
    if text is None:
        return otherwise
    if not _NUMBER.fullmatch(text) or int(text) > most:
        raise UsageError(f"a {what} is a number up to {most}, not {text!r}")
    return int(text)


def _explain(arguments: argparse.Namespace) -> int:
    from routed.net.addresses import format_address  # noqa: PLC0415
    from routed.policy.judge import described  # noqa: PLC0415

    verdicts = _verdicts(arguments)
    source, destination = verdicts.party(arguments.source), verdicts.party(arguments.destination)
    asked = _asked(
        verdicts,
        destination,
        {
            "proto": arguments.proto,
            "port": arguments.port,
            "sourcePort": arguments.source_port,
            "icmpType": arguments.icmp_type,
            "icmpCode": arguments.icmp_code,
        },
    )
    verdict = _judged(verdicts, source, destination, asked, arguments.family)
    packet = verdict.packet
    answer: Row = {
        "from": source.text,
        "to": destination.text,
        "source": format_address(packet.source),
        "destination": format_address(packet.destination),
        "protocol": asked.protocol,
        "port": asked.port,
        "sourcePort": asked.source_port,
        "icmpType": asked.icmp.type if asked.icmp is not None else None,
        "icmpCode": asked.icmp.code if asked.icmp is not None else None,
        "unsure": list(verdicts.unsure),
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
    words = ("source", "destination", "protocol", "port", "sourcePort", "icmpType", "icmpCode")
    asks = {name: str(answer[name]) for name in words if answer[name] is not None}
    if verdict.tunnel:
        asks["tunnel"] = verdict.tunnel
    if verdict.translated:
        asks["translated"] = format_address(verdict.translated)
    try:
        answer["kernel"] = ask(arguments, "policy", **asks)
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
    if answer["unsure"]:
        return
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
    what = f" port {answer['port']}" if answer["protocol"] in _WITH_PORTS else ""
    if answer["icmpType"] is not None:
        what = f" type {answer['icmpType']}"
    yield harmless(
        f"{answer['from']} ({answer['source']}) -> {answer['to']} ({answer['destination']}) "
        f"{protocol}{what}: {answer['verdict']}, by {answer['reason']}"
    )
    for text in answer["unsure"]:
        yield harmless(f"the datastore cannot say for sure: {text}")
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
    ways = (("comes in by", "incoming"), ("leaves by", "outgoing"))
    yield harmless("  " + ", ".join(f"{what} {_by(kernel, side)}" for what, side in ways))
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


def _by(kernel: Row, side: str) -> str:
    """`eth1 (as the kernel routes it, via 192.0.2.1)`."""
    why = kernel[f"{side}By"]
    return f"{kernel[side]} ({why})" if kernel[side] else str(why)


# ---- expectations

_NEEDED = {"from", "to", "verdict"}
_FIELDS = _NEEDED | {"port", "proto", "family", "sourcePort", "icmpType", "icmpCode"}


def _test(arguments: argparse.Namespace) -> int:
    from routed.policy.verdicts import UnknownEndpoint  # noqa: PLC0415

    expectations = _expectations(arguments.file)
    verdicts = _verdicts(arguments)
    failures = [f"nothing is sure: {text}" for text in verdicts.unsure]
    for where, expected in expectations:
        try:
            source, destination = verdicts.party(expected["from"]), verdicts.party(expected["to"])
            asked = _asked(verdicts, destination, expected)
            verdict = _judged(verdicts, source, destination, asked, expected.get("family"))
        except UsageError as error:
            raise ConfigError(where, str(error)) from None
        except UnknownEndpoint as error:
            failures.append(f"{where}: {error}")
            continue
        said = "allow" if verdict.admitted else "deny"
        if said != expected["verdict"]:
            reason = verdict.crossings[-1][1].reason if verdict.crossings else "no node judges it"
            failures.append(
                f"{where}: {expected['from']} -> {expected['to']} {expected['proto']}"
                f"/{asked.port if asked.icmp is None else asked.icmp.type}: "
                f"expected {expected['verdict']}, it is {said}, by {reason}"
            )
    show_one(arguments, {"tried": len(expectations), "failures": failures}, tested)
    return ExitStatus.ERROR if failures else ExitStatus.OK


def _expectations(path: str) -> list[tuple[str, dict[str, str]]]:
    """Raises ConfigError with the line of what is wrong."""
    from routed.datastore.documents import read_documents  # noqa: PLC0415
    from routed.model.fields import shown  # noqa: PLC0415

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
            said = (
                {name: value for name, value in entry.items() if value is not None} if isinstance(entry, dict) else {}
            )
            if not _NEEDED <= said.keys() <= _FIELDS:
                text = "an expectation has from, to, verdict, port (icmpType of icmp), and proto if it is not tcp"
                raise ConfigError(where, text)
            for name, value in said.items():
                if isinstance(value, bool) or not isinstance(value, (str, int)):
                    raise ConfigError(where, f"{name}: must be a word or a number, not {shown(value)}")
            texts = {name: str(value) for name, value in ({"proto": "tcp"} | said).items()}
            for name, allowed in (("verdict", ("allow", "deny")), ("family", _FAMILIES)):
                if texts.get(name, allowed[0]) not in allowed:
                    raise ConfigError(where, f"{name}: must be {allowed[0]} or {allowed[1]}, not {shown(texts[name])}")
            found.append((where, texts))
    if not found:
        raise ConfigError(path, "there are no expectations in it")
    return found


def tested(answer: Row) -> Iterator[str]:
    """`routedctl policy test`."""
    for failure in answer["failures"]:
        yield harmless(f"FAILED {failure}")
    yield f"{answer['tried']} expectations, {len(answer['failures'])} failed"
