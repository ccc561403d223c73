"""The two forms of the plugin, each against a stand-in daemon: one protocol, one behaviour."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routed.cni import client, protocol
from routed.cni.protocol import Call, encode_call, encode_result, encode_sysctls, parse_call
from routed.testing.lab import wait_for
from tests.cni.forms import FORMS, program

SOURCE = Path(protocol.__file__).with_name("routed-cni.c")


@pytest.fixture(scope="module", params=FORMS)
def plugin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How to run it."""
    return program(request.param, tmp_path_factory.mktemp("cni"))


@dataclass
class Daemon:
    """Takes one call and answers as it is told."""

    path: str
    answers: list[bytes] = field(default_factory=list)
    heard: list[bytes] = field(default_factory=list)
    rights: list[int] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None
    """What happens between the call and the answer."""

    def serve(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # the test is over, and nobody called
            return
        with connection:
            message, ancillary, _, _ = connection.recvmsg(protocol.MAX_MESSAGE, socket.CMSG_SPACE(64))
            part = message
            while len(part) == protocol.MAX_MESSAGE:
                part = connection.recv(protocol.MAX_MESSAGE)
                message += part
            self.heard.append(message)
            for _, _, data in ancillary:
                self.rights += [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), 4)]
            self.meanwhile()
            for answer in self.answers:
                connection.send(answer)
                if answer[:1] == protocol.SYSCTLS:
                    self.heard.append(connection.recv(protocol.MAX_MESSAGE))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(str(tmp_path / "cni.sock"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.settimeout(60)
        listener.bind(made.path)
        listener.listen()
        thread = threading.Thread(target=made.serve, args=(listener,), daemon=True)
        thread.start()
        yield made
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as last, contextlib.suppress(OSError):
            last.connect(made.path)  # where nobody called, it still waits for a call
        thread.join(60)
    for fd in made.rights:
        os.close(fd)


def run(plugin: list[str], configuration: object, **environment: str) -> tuple[int, bytes]:
    given = configuration if isinstance(configuration, bytes) else json.dumps(configuration).encode()
    done = subprocess.run(
        plugin,
        input=given,
        stdout=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=False,
        timeout=30,
    )
    return done.returncode, done.stdout


def test_a_call_and_its_result(plugin: list[str], daemon: Daemon):
    daemon.answers = [encode_result(0, b'{"ips": []}')]
    configuration = {"cniVersion": "1.0.0", "type": "routed-cni", "socket": daemon.path}
    status, output = run(
        plugin, configuration, CNI_COMMAND="DEL", CNI_CONTAINERID="abc", CNI_ARGS="A=\u00e9;B=1", OTHER="secret"
    )
    assert (status, output) == (0, b'{"ips": []}')
    call = parse_call(daemon.heard[0])
    assert call.environment == {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "abc", "CNI_ARGS": "A=\u00e9;B=1"}
    assert json.loads(call.configuration) == configuration
    assert daemon.rights == []


def test_the_daemon_s_errors_are_passed_on(plugin: list[str], daemon: Daemon):
    daemon.answers = [encode_result(1, b'{"code": 7}')]
    assert run(plugin, {"socket": daemon.path}, CNI_COMMAND="GC") == (1, b'{"code": 7}')


def test_sysctls_are_only_those_of_the_network(plugin: list[str], daemon: Daemon, tmp_path: Path):
    other = tmp_path / "file"
    other.write_text("as it was")
    daemon.answers = [
        encode_sysctls([("ipv6/no/such/thing", "1"), ("no/such/thing", "1"), ("never/reached", "1")]),
        b"S" + str(other).encode() + b"\x001\x00",
        b"S/proc/sys/net/../kernel/nothing\x001\x00",
        encode_result(0, b"done"),
    ]
    assert run(plugin, {"socket": daemon.path}, CNI_COMMAND="DEL") == (0, b"done")
    assert daemon.heard[1] == b"s/proc/sys/net/no/such/thing: No such file or directory"
    assert daemon.heard[2] == b"srefused to write " + str(other).encode()
    assert daemon.heard[3] == b"srefused to write /proc/sys/net/../kernel/nothing"
    assert other.read_text() == "as it was"


def test_a_call_that_is_stopped_for_a_while_gets_its_answer_all_the_same(plugin: list[str], daemon: Daemon):
    """As by a freezer of containers, or by a person: the runtime would have to make the pod anew."""

    def state() -> str:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0]

    def stop_and_go_on() -> None:
        wait_for(lambda: state() == "S", 30, "it waits for the answer", state=state)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: state() == "T", 30, "it is stopped", state=state)
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: state() in "SZ", 30, "it waits again, or has given up", state=state)

    daemon.meanwhile, daemon.answers = stop_and_go_on, [encode_result(0, b"done")]
    environment = {"PATH": "/usr/bin:/bin", "CNI_COMMAND": "DEL"}
    process = subprocess.Popen(plugin, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    output, _ = process.communicate(json.dumps({"socket": daemon.path}).encode(), timeout=60)
    assert (process.returncode, output) == (0, b"done")


@pytest.mark.parametrize("answers", [[], [b"?"], [b"R"]], ids=["hangs up", "nonsense", "half a result"])
def test_a_daemon_that_dies_during_the_call(plugin: list[str], daemon: Daemon, answers: list[bytes]):
    daemon.answers = answers
    status, output = run(plugin, {"cniVersion": "1.1.0", "socket": daemon.path}, CNI_COMMAND="DEL")
    error = json.loads(output)
    assert (status, error["code"], error["cniVersion"]) == (1, 11, "1.1.0")
    assert "try again" in error["msg"]


def test_a_daemon_that_dies_while_it_is_asked_for_its_status(plugin: list[str], daemon: Daemon):
    status, output = run(plugin, {"cniVersion": "1.1.0", "socket": daemon.path}, CNI_COMMAND="STATUS")
    assert (status, json.loads(output)["code"]) == (1, 50)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS", ""])
def test_no_daemon(plugin: list[str], tmp_path: Path, command: str):
    path = str(tmp_path / "nobody.sock")
    status, output = run(plugin, {"cniVersion": "0.4.0", "socket": path}, CNI_COMMAND=command)
    error = json.loads(output)
    assert (status, error["code"], error["cniVersion"]) == (1, 50 if command == "STATUS" else 11, "0.4.0")
    assert path in error["msg"] and "systemctl status routed" in error["msg"]


def test_version_needs_no_daemon(plugin: list[str]):
    status, output = run(plugin, {"cniVersion": "0.3.1"}, CNI_COMMAND="VERSION")
    assert status == 0
    assert json.loads(output) == {"cniVersion": "0.3.1", "supportedVersions": list(protocol.VERSIONS)}


@pytest.mark.parametrize("command", ["ADD", "CHECK"])
@pytest.mark.parametrize("netns", [None, "/no/such/namespace", "/dev/null"])
def test_a_namespace_that_is_needed(plugin: list[str], daemon: Daemon, command: str, netns: str | None):
    environment = {"CNI_COMMAND": command} | ({"CNI_NETNS": netns} if netns else {})
    status, output = run(plugin, {"socket": daemon.path}, **environment)
    error = json.loads(output)
    assert (status, error["code"]) == (1, 4)
    assert error["msg"].startswith("CNI_NETNS: cannot ") and (netns or "") in error["msg"]


def test_a_namespace_that_is_gone_does_not_keep_del_from_working(plugin: list[str], daemon: Daemon):
    daemon.answers = [encode_result(0, b"")]
    assert run(plugin, {"socket": daemon.path}, CNI_COMMAND="DEL", CNI_NETNS="/no/such") == (0, b"")


def test_only_the_socket_at_the_top_counts(plugin: list[str], daemon: Daemon):
    daemon.answers = [encode_result(0, b"")]
    configuration = b'{"a": [{"socket": "/1"}], "b": "\\"socket\\": \\"/2\\"", "socket" : "%s"}' % daemon.path.encode()
    assert run(plugin, configuration, CNI_COMMAND="STATUS") == (0, b"")


def test_too_much_is_refused(plugin: list[str], daemon: Daemon):
    status, output = run(plugin, {"socket": daemon.path, "rest": "x" * protocol.MAX_CALL}, CNI_COMMAND="STATUS")
    error = json.loads(output)
    assert status == 1 and error["code"] == 6 and str(protocol.MAX_CALL) in error["msg"]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_however_long_a_configuration_is_it_arrives_whole(plugin: list[str], daemon: Daemon, parts: int, more: int):
    """Annotations may be long, and they are in every call, DEL included."""
    daemon.answers = [encode_result(0, b"")]
    head = {"socket": daemon.path, "rest": ""}
    framed = len(encode_call(Call({"CNI_COMMAND": "DEL"}, json.dumps(head).encode())))
    configuration = {**head, "rest": "x" * (parts * protocol.MAX_MESSAGE - framed + more)}
    assert run(plugin, configuration, CNI_COMMAND="DEL") == (0, b"")
    call = parse_call(daemon.heard[0])
    assert call.environment == {"CNI_COMMAND": "DEL"} and json.loads(call.configuration) == configuration


@pytest.mark.parametrize("configuration", [b"", b"{", b"[]", b"null", b'"socket"', b'{"socket": 1}', b"\xff\xfe"])
def test_a_configuration_nobody_can_read_goes_to_the_default_socket(plugin: list[str], configuration: bytes):
    if os.path.exists(protocol.DEFAULT_SOCKET):
        pytest.skip("a daemon runs here")
    status, output = run(plugin, configuration, CNI_COMMAND="STATUS")
    assert status == 1 and protocol.DEFAULT_SOCKET in json.loads(output)["msg"]


def test_the_three_copies_agree():
    text = SOURCE.read_text()
    defines = dict(re.findall(r"^#define (\w+) (.+)$", text, re.MULTILINE))
    assert json.loads(defines["GREETING"]).encode() + b"\x00" == client.GREETING == protocol.GREETING
    assert eval(defines["MAX_MESSAGE"]) == client.MAX_MESSAGE == protocol.MAX_MESSAGE
    assert eval(defines["MAX_CALL"]) == client.MAX_CALL == protocol.MAX_CALL
    assert text.count(f"more than {client.MAX_CALL} octets") == 2
    assert json.loads(defines["DEFAULT_SOCKET"]) == client.DEFAULT_SOCKET == protocol.DEFAULT_SOCKET
    assert json.loads(json.loads(defines["VERSIONS"])) == json.loads(client.VERSIONS) == list(protocol.VERSIONS)
    assert float(defines["PATIENCE"]) == client.PATIENCE


NAMES = st.from_regex(r"CNI_[A-Z]{1,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))


@given(st.dictionaries(NAMES, VALUES), st.binary())
def test_calls_survive_the_wire(environment: dict[str, str], configuration: bytes):
    call = Call(environment, configuration)
    assert parse_call(encode_call(call)) == call


@given(st.binary())
def test_nothing_that_arrives_can_do_more_than_be_refused(message: bytes):
    for candidate in (message, protocol.GREETING + message):
        try:
            parse_call(candidate)
        except ValueError:
            continue
