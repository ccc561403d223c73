"""The Debian package, installed into a copy-on-write copy of this machine, and its unit run as systemd would run it.

The node has a real neighbour (BIRD as the switch) and a real pod behind it, whose packets go through the node's kernel:

    pod 10.244.1.1 --- node (AS 64512) --- tor (AS 65000), 192.0.2.1
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from package import completions, deb, wheel
from routed import __version__
from routed.testing.lab import Lab, Namespace, wait_for
from routed.testing.lab.echoes import echoes
from routed.testing.lab.namespaces import NETNS
from routed.testing.routers import Bird, resource
from routed.testing.service import Root, Service
from tests.docs.blocks import commands
from tests.house.rooms import ROOT

SOON = 30.0
UNIT = "/usr/lib/systemd/system/routed.service"
DROP_IN = "/etc/systemd/system/routed.service.d/test.conf"
BLOCK = "10.244.1.0/26"
CLIENT = "192.0.2.1"
CAPABILITIES = {"cap_net_admin": 12, "cap_net_bind_service": 10, "cap_net_raw": 13}

SYSTEM_PYTHON = "/usr/bin/python3"


def same_python() -> bool:
    """Whether the distribution's Python can load what this one has compiled modules for."""
    if not os.path.exists(SYSTEM_PYTHON):
        return False
    version = subprocess.run([SYSTEM_PYTHON, "--version"], capture_output=True, text=True, check=True).stdout
    return version.split()[1].rpartition(".")[0] == f"{sys.version_info.major}.{sys.version_info.minor}"


pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("dpkg-shlibdeps") is None, reason="not a Debian or Ubuntu with dpkg-dev"),
    pytest.mark.skipif(not same_python(), reason="the tests run with another Python than the distribution's"),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deb.build(tmp_path_factory.mktemp("deb"))


@pytest.fixture(scope="module")
def node(lab: Lab) -> Namespace:
    node, pod, tor = lab.namespace("node", forward=True), lab.namespace("pod"), lab.namespace("tor", forward=True)
    lab.link(node.port("eth0", "10.0.0.1/24"), tor.port("eth0", "10.0.0.254/24"))
    lab.link(node.port("cali1", "169.254.1.1/32"), pod.port("eth0", "10.244.1.1/32"))
    node.route("add 10.244.1.1/32 dev cali1")
    pod.ip("route add 169.254.1.1/32 dev eth0", "route add default via 169.254.1.1")
    tor.address("lo", f"{CLIENT}/32")
    Bird(
        tor,
        "router id 10.0.0.254;\nprotocol device {}\n"
        "protocol kernel { ipv4 { import none; export where source = RTS_BGP; }; }\n"
        f'protocol static {{ ipv4; route {CLIENT}/32 via "lo"; }}\n'
        "protocol bgp { local 10.0.0.254 as 65000; neighbor 10.0.0.1 as 64512; connect delay time 1;"
        " connect retry time 1; error wait time 1, 2; ipv4 { import all; export where source = RTS_STATIC; }; }\n",
    ).start()
    return node


@pytest.fixture(scope="module")
def root(node: Namespace, package: Path) -> Root:
    """The node's file system with the package installed."""
    made = Root(node)
    made.host_path("/run/routed.deb").write_bytes(package.read_bytes())
    made.run("dpkg", "--force-confold", "-i", "/run/routed.deb")
    return made


def configure(root: Root, **settings: object) -> None:
    shipped = yaml.safe_load(root.host_path("/etc/routed/routed.yaml").read_text())
    root.host_path("/etc/routed/routed.yaml").write_text(yaml.safe_dump({**shipped, "nodeName": "node", **settings}))
    manifests = (
        resource("BGPConfiguration", "default", {"asNumber": 64512, "nodeToNodeMeshEnabled": False}),
        resource("IPPool", "pods", {"cidr": "10.244.0.0/16"}),
        resource("Node", "node", {"bgp": {"ipv4Address": "10.0.0.1/24"}}),
        resource("BlockAffinity", "block", {"node": "node", "cidr": BLOCK, "state": "confirmed"}),
        resource("BGPPeer", "tor", {"peerIP": "10.0.0.254", "asNumber": 65000}),
    )
    root.host_path("/etc/routed/resources/all.yaml").write_text(yaml.safe_dump_all(manifests))


@pytest.fixture
def drop_in(root: Root) -> Iterator[Path]:
    """A place for a drop-in of the unit, which goes afterwards."""
    path = root.host_path(DROP_IN)
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def minded(root: Root) -> Iterator[Service]:
    service = Service(root, UNIT)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def service(root: Root) -> Iterator[Service]:
    """The service, started, with its session up and its routes in the kernel."""
    configure(root)
    with minded(root) as made:
        made.start()
        whole(made)
        yield made


def whole(service: Service) -> None:
    namespace = service.root.namespace
    wait_for(
        lambda: "1 of 1 sessions established" in service.status and CLIENT in namespace.routes(protocol=120),
        SOON,
        "the session is up and its route in the kernel",
        state=service.log,
    )
    tor = namespace.lab.namespaces["tor"]
    wait_for(lambda: BLOCK in tor.routes(), SOON, "the switch has the block", state=service.log)
    # a second restart before the first is over makes a helper drop what it kept (RFC 4724 4.2)
    wait_for(
        lambda: not json.loads(service.root.run("routedctl", "status", "--json"))["sweepPending"],
        SOON,
        "no restart is under way",
    )


# ---- the package


def test_a_new_installation_is_complete_and_starts_nothing(root: Root) -> None:
    assert (
        root.run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", "routed") == f"installed {deb.version()}"
    )
    assert root.run("dpkg", "--verify", "routed") == ""
    assert root.run("routed", "--version") == f"routed {__version__}\n"
    for place in ("bash-completion/completions/routedctl", completions.DEBIAN_ZSH, completions.PLACES["fish"]):
        assert "routedctl complete" in root.run("cat", f"/usr/share/{place}")
    uid, _ = root.users_id("routed")
    assert 0 < uid < 1000, "a user of the system"
    assert root.run("systemctl", "is-enabled", "routed", check=False).strip() == "disabled"
    assert not root.host_path("/run/routed").exists()


def test_the_installed_unit_is_understood(root: Root) -> None:
    """The unit itself, with the program and the man pages it names in their places."""
    root.host_path("/run/systemd/unit").mkdir()
    done = subprocess.run(
        root.command(
            "systemd-analyze", "verify", *(["--man=no"] if shutil.which("man") is None else []), "routed.service"
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "routed" in line]
    assert ours == []


def test_it_says_where_a_configuration_is_missing(root: Root) -> None:
    said = root.run(
        "sh", "-c", "setpriv --reuid=routed --regid=routed --clear-groups routed run --config /etc/none; echo $?"
    )
    assert said.strip() == "78"


# ---- the service


def test_it_runs_as_the_unit_says(service: Service) -> None:
    uid, gid = service.root.users_id("routed")
    state = service.state()
    mask = f"{sum(1 << number for number in CAPABILITIES.values()):016x}"
    assert state["Uid"].split() == [str(uid)] * 4
    assert state["Gid"].split() == [str(gid)] * 4
    assert state["Groups"] == ""
    assert {state[f"Cap{each}"] for each in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {mask}
    assert (state["NoNewPrivs"], state["Seccomp"], state["Umask"]) == ("1", "2", "0077")
    assert sorted(word.lower() for word in service.words("CapabilityBoundingSet")) == sorted(CAPABILITIES)
    limits = Path(f"/proc/{service.pid}/limits").read_text()
    assert re.search(rf"Max open files +{service.open_files} +{service.open_files} ", limits)
    before = service.messages[: [each.startswith("READY=1") for each in service.messages].index(True)]
    assert before and all("EXTEND_TIMEOUT_USEC=" in each for each in before), "asked for patience first, once a second"


def test_its_folders_are_its_own(service: Service) -> None:
    uid, gid = service.root.users_id("routed")
    for path, mode in (("/run/routed", 0o755), ("/var/lib/routed", 0o750), ("/run/routed/routed.sock", 0o660)):
        found = service.root.host_path(path).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (uid, gid, mode), path


def test_who_may_ask(service: Service) -> None:
    root = service.root
    assert json.loads(root.run("routedctl", "status", "--json"))["node"] == "node"
    assert json.loads(root.run("routedctl", "status", "--json", user="routed"))["problems"] == []
    refused = root.run("sh", "-c", "setpriv --reuid=65534 --regid=65534 --clear-groups routedctl status 2>&1; echo $?")
    assert refused.splitlines()[-1] == "69" and "ermission" in refused


PROBE = """
import ctypes, errno, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
answers = {}
def attempt(name, work):
    try:
        work()
        answers[name] = "done"
    except OSError as error:
        answers[name] = errno.errorcode[error.errno]
def call(function, *arguments):
    if getattr(libc, function)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), function)
def port(number):
    with socket.create_server(("", number)):
        pass
def write(path, text="1"):
    with open(path, "w") as file:
        file.write(text)
def bound():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
def family(number):
    socket.socket(number, socket.SOCK_DGRAM).close()
libc.mmap.restype = ctypes.c_void_p
def code():
    if libc.mmap(None, 4096, 7, 0x22, -1, 0) in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
attempt("port 178", lambda: port(178))
attempt("kernel setting", lambda: write("/proc/sys/net/ipv4/conf/eth0/proxy_arp"))
attempt("other kernel setting", lambda: write("/proc/sys/kernel/panic"))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close())
attempt("bound socket", bound)
attempt("state", lambda: write("/var/lib/routed/probe"))
attempt("temporary", lambda: write("/tmp/probe"))
attempt("system", lambda: write("/usr/probe"))
attempt("configuration", lambda: write("/etc/routed/probe"))
attempt("home", lambda: os.listdir("/root"))
attempt("kernel log", lambda: open("/dev/kmsg", "rb").close())
attempt("packet socket", lambda: family(socket.AF_PACKET))
attempt("namespace", lambda: call("unshare", 0x40000000))
attempt("own nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, 1))
attempt("other user", lambda: os.setuid(0))
attempt("writable code", code)
attempt("setuid file", lambda: os.chmod("/var/lib/routed/probe", 0o4755))
answers["others' processes"] = "seen" if os.path.exists("/proc/1/status") else "unseen"
answers["devices"] = sorted(os.listdir("/dev"))
os.unlink("/var/lib/routed/probe")
print(json.dumps(answers))
"""


def test_what_it_may_and_what_not(service: Service) -> None:
    found = json.loads(service.try_out(PROBE))
    needed = ("port 178", "kernel setting", "raw socket", "bound socket", "state", "temporary")
    assert {name: found.pop(name) for name in needed} == dict.fromkeys(needed, "done")
    assert found == {
        "other kernel setting": "EACCES",
        "system": "EROFS",
        "configuration": "EROFS",
        "home": "EACCES",
        "kernel log": "ENOENT",
        "packet socket": "EAFNOSUPPORT",
        "namespace": "EPERM",
        "own nice": "EPERM",
        "other user": "EPERM",
        "writable code": "EPERM",
        "setuid file": "EPERM",
        "others' processes": "unseen",
        "devices": ["fd", "full", "null", "random", "tty", "urandom", "zero"],
    }


@pytest.mark.parametrize(("missing", "sentence"), [("NET_BIND_SERVICE", "port 179"), ("NET_ADMIN", "not permitted")])
def test_without_a_capability_it_says_what_it_misses(lab: Lab, package: Path, missing: str, sentence: str) -> None:
    """Each is needed, and who took it away reads so in `routedctl status`."""
    alone = lab.namespace(f"without-{missing.lower().replace('_', '-')}")
    alone.ip("link add eth0 type veth peer name eth1", "link set eth0 up", "link set eth1 up")
    alone.address("eth0", "10.0.0.1/24")
    root = Root(alone)
    root.host_path("/run/routed.deb").write_bytes(package.read_bytes())
    root.run("dpkg", "-i", "/run/routed.deb")
    configure(root)
    kept = " ".join(f"CAP_{name}" for name in ("NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW") if name != missing)
    drop_in = root.host_path(DROP_IN)
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(
        f"[Service]\nAmbientCapabilities=\nCapabilityBoundingSet=\nAmbientCapabilities={kept}\nCapabilityBoundingSet={kept}\n"
    )
    with minded(root) as service:
        service.start()
        told = lambda: root.run("routedctl", "status") + root.run("routedctl", "show", "fib")  # noqa: E731
        wait_for(lambda: sentence in told().lower(), SOON, f"it says what it misses: {sentence}", state=told)


# ---- without the package


def typed(page: str, *programs: str) -> list[str]:
    """The command lines of a page that begin with one of these programs."""
    return [each.text for each in commands(ROOT / page, set(programs)) if each.program in programs]


def test_without_the_package_as_the_pages_say(lab: Lab) -> None:
    """README's way with pip and docs/systemd.md's commands, typed one by one; then the unit starts what they installed.

    What pip would fetch comes from the environment of these tests. The two commands that speak to systemd as process 1, or
    set every sysctl of the machine anew, are left out.
    """
    alone = lab.namespace("without-package")
    alone.ip("link add eth0 type veth peer name eth1", "link set eth0 up", "link set eth1 up")
    alone.address("eth0", "10.0.0.1/24")
    root = Root(alone)
    sources = root.host_path("/run/sources")
    for folder in wheel.FOLDERS:
        shutil.copytree(ROOT / folder, sources / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in wheel.FILES:
        shutil.copy(ROOT / file, sources / file)
    offline = "export PIP_NO_INDEX=1 PIP_NO_DEPS=1 PIP_NO_BUILD_ISOLATION=0 PIP_DISABLE_PIP_VERSION_CHECK=1"

    def types(line: str) -> None:
        root.run("sh", "-ec", f"export PATH=/usr/sbin:/usr/bin:/sbin:/bin; {offline}; cd /run/sources; {line}")

    make, *install = typed("README.md", "python3", "pip", "ln")
    assert [line.split()[0].rpartition("/")[2] for line in (make, *install)] == ["python3", "pip", "ln"]
    types(make)
    (packages,) = root.host_path("/opt/routed/lib").glob("python3.*/site-packages")
    for old in packages.glob("setuptools*"):  # some Pythons bring one, and pip would fetch another to build with
        shutil.rmtree(old)
    for fetched in (*deb.dependencies("routed"), importlib.metadata.distribution("setuptools")):
        deb.copy(fetched, packages)
    for line in install:
        types(line)
    unit = typed("docs/systemd.md", "cp", "mkdir", "systemd-sysusers")
    assert len(unit) == 7
    root.run("rm", "-rf", "/etc/sysusers.d")  # a fresh Debian has none
    root.run("mkdir", "-p", "/etc/sysctl.d")
    for line in unit:
        types(line.partition(" && ")[0])
    root.run("mkdir", "-p", "/etc/routed/resources")
    root.host_path("/etc/routed/routed.yaml").write_text(
        "nodeName: node\ndatastore: {type: file, path: /etc/routed/resources}\n"
    )
    root.host_path("/etc/routed/resources/node.yaml").write_text(
        yaml.safe_dump(resource("Node", "node", {"bgp": {"ipv4Address": "10.0.0.1/24"}}))
    )
    service = Service(root, "/etc/systemd/system/routed.service")
    try:
        service.start()
        assert "/opt/routed/bin/routed" in root.run("cat", f"/proc/{service.pid}/cmdline")
        uid, _ = root.users_id("routed")
        assert f"Uid:\t{uid}\t" in root.run("cat", f"/proc/{service.pid}/status")
        assert f"version:             {__version__}" in root.run("/usr/local/bin/routedctl", "status")
    finally:
        service.close()


# ---- pods

PLUGINS = {
    "c": ("/opt/cni/bin/routed-cni",),
    "python": ("/usr/bin/python3", "-I", "-S", "/usr/lib/routed/routed/cni/client.py"),
}


@pytest.fixture(scope="module")
def pod_node(lab: Lab, package: Path) -> Iterator[Service]:
    """The service on a node whose pods are routed's. What it writes is where the unit lets it write."""
    alone = lab.namespace("pod-node", forward=True)
    alone.ip("link add eth0 type veth peer name eth1", "link set eth0 up", "link set eth1 up")
    alone.address("eth0", "10.0.0.1/24", "fd00::1/64")
    root = Root(alone)
    root.host_path("/run/routed.deb").write_bytes(package.read_bytes())
    root.run("dpkg", "-i", "/run/routed.deb")
    root.run("install", "-d", "-o", "routed", "-g", "routed", "/var/lib/routed/resources")
    shipped = yaml.safe_load(root.host_path("/etc/routed/routed.yaml").read_text())
    shipped |= {
        "nodeName": "node",
        "cni": {"enabled": True},
        "datastore": {"type": "file", "path": "/var/lib/routed/resources"},
        "node": {"register": True, "ipv6": "first-found"},
    }
    root.host_path("/etc/routed/routed.yaml").write_text(yaml.safe_dump(shipped))
    manifests = (
        resource("IPPool", "v4", {"cidr": "10.65.0.0/24", "vxlanMode": "Always"}),
        resource("IPPool", "v6", {"cidr": "fd00:65::/120", "vxlanMode": "Always"}),
        resource(
            "Node",
            "other",
            {
                "bgp": {"ipv4Address": "10.0.0.2/24", "ipv6Address": "fd00::2/64"},
                "ipv4VXLANTunnelAddr": "10.65.0.192",
                "ipv6VXLANTunnelAddr": "fd00:65::c0",
            },
        ),
    )
    root.host_path("/var/lib/routed/resources/all.yaml").write_text(yaml.safe_dump_all(manifests))
    with minded(root) as made:
        made.start()
        yield made


def cni(
    root: Root, plugin: str, command: str, pod: Namespace | None = None, version: str = "1.0.0", attach: str = "routed"
) -> tuple[int, Any]:
    """A call of the plugin as it is installed, with the configuration as it is shipped: status and output."""
    shipped = json.loads(root.host_path("/usr/share/doc/routed/examples/10-routed.conflist").read_text())
    configuration = {**shipped["plugins"][0], "name": shipped["name"], "cniVersion": version}
    configuration["ipam"]["assign_ipv6"] = "true"
    configuration["attach"] = attach
    variables = {"CNI_COMMAND": command}
    if pod is not None:
        inside = pod.start("holder", "sleep", "infinity")
        own = os.stat(f"{NETNS}/{pod.full_name}")
        wait_for(
            lambda: os.path.samestat(os.stat(f"/proc/{inside.pid}/ns/net"), own), SOON,
            "the pod's namespace has a process",
        )  # fmt: skip
        variables |= {"CNI_CONTAINERID": pod.name, "CNI_NETNS": f"/proc/{inside.pid}/ns/net", "CNI_IFNAME": "eth0"}
        variables["CNI_ARGS"] = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod.name}"
    done = subprocess.run(
        root.command(*PLUGINS[plugin]),
        input=json.dumps(configuration).encode(),
        stdout=subprocess.PIPE,
        env={**os.environ, **variables},
        check=False,
        timeout=60,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def test_the_unit_s_daemon_writes_its_node_and_makes_its_tunnels(pod_node: Service) -> None:
    machine = pod_node.root.namespace
    wait_for(lambda: "vxlan-v6.calico" in machine.run("ip", "-br", "link"), SOON, "the devices", state=pod_node.log)
    folder = pod_node.root.host_path("/var/lib/routed/resources")

    def spec() -> Any:
        return yaml.safe_load((folder / "node-node.yaml").read_text())["spec"]

    assert (spec()["bgp"]["ipv4Address"], spec()["bgp"]["ipv6Address"]) == ("10.0.0.1/24", "fd00::1/64")
    wait_for(lambda: "ipv6VXLANTunnelAddr" in spec(), SOON, "the addresses are in the Node", state=pod_node.log)
    wait_for(
        lambda: "dst fd00::2 self permanent" in machine.run("bridge", "fdb"),
        SOON,
        "whom it reaches",
        state=pod_node.log,
    )
    (link,) = json.loads(machine.run("ip", "-j", "-d", "addr", "show", "vxlan.calico"))
    assert spec()["ipv4VXLANTunnelAddr"] in [each["local"] for each in link["addr_info"]]
    assert "UP" in link["flags"] and link["mtu"] == 1450


@pytest.mark.parametrize(("plugin", "attach"), [*((plugin, "routed") for plugin in PLUGINS), ("c", "bridge")])
def test_the_unit_s_daemon_takes_pods_of_the_installed_plugin(
    pod_node: Service, lab: Lab, plugin: str, attach: str
) -> None:
    root, machine = pod_node.root, pod_node.root.namespace
    wait_for(lambda: cni(root, plugin, "STATUS", version="1.1.0") == (0, None), SOON, "takes pods", state=pod_node.log)
    uid, _ = root.users_id("routed")
    mask = f"{sum(1 << number for number in CAPABILITIES.values()):016x}"
    assert pod_node.state()["Uid"].split() == [str(uid)] * 4 and pod_node.state()["CapEff"] == mask
    pods, addresses = [lab.namespace(f"{plugin}-{attach}-{number}") for number in range(2)], []
    for pod in pods:
        status, result = cni(root, plugin, "ADD", pod, attach=attach)
        assert status == 0, (result, pod_node.log())
        addresses.append([ip["address"].partition("/")[0] for ip in result["ips"]])
    assert len(addresses[0]) == 2
    for address in addresses[1]:
        assert pods[0].pings(address) and machine.pings(address), pod_node.log()
    for pod in pods:
        assert cni(root, plugin, "DEL", pod) == (0, None)
    wait_for(lambda: "\ncali" not in machine.run("ip", "-br", "link"), SOON, "the interfaces go", state=pod_node.log)
    problems = lambda: json.loads(root.run("routedctl", "status", "--json"))["problems"]  # noqa: E731
    wait_for(lambda: problems() == [], SOON, "nothing is wrong", state=problems)


def test_a_datastore_it_may_not_write_is_said_at_the_start(pod_node: Service) -> None:
    pod_node.stop()
    configured = pod_node.root.host_path("/etc/routed/routed.yaml")
    settings = yaml.safe_load(configured.read_text())
    settings["datastore"]["path"] = "/etc/routed/resources"
    configured.write_text(yaml.safe_dump(settings))
    with (
        minded(pod_node.root) as service,
        pytest.raises(Exception, match="may not write to /etc/routed/resources; put datastore"),
    ):
        service.start()


# ---- restarts


@contextlib.contextmanager
def flood(namespace: Namespace) -> Iterator[None]:
    """Two hundred pings a second from the pod to the client while the block runs, and each is answered, one more after it
    too."""
    asked = echoes(namespace, CLIENT, 0.005)
    yield
    sent, lost = asked.end()
    assert not lost, f"{lost} of {sent} pings were lost"


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_restart_loses_no_packet(service: Service, how: str) -> None:
    namespace = service.root.namespace
    before = service.pid
    with flood(namespace.lab.namespaces["pod"]):
        if how == "restart":
            service.restart()
        else:
            runs = len(service.results)
            os.kill(service.pid, signal.SIGKILL)
            wait_for(lambda: len(service.results) > runs, SOON, "the end is noticed")
            assert service.results[-1] == "signal KILL"
            wait_for(lambda: service.pid != before and service.ready, SOON, "started again", state=service.log)
        whole(service)
    assert service.pid != before


def test_an_upgrade_keeps_what_was_edited_and_restarts(service: Service) -> None:
    """With a stand-in for systemctl: what the package's scripts ask of systemd, on a machine that systemd booted."""
    root = service.root
    edited = root.host_path("/etc/routed/routed.yaml").read_text()
    calls = root.host_path("/run/calls")
    for name in ("systemctl", "systemd-sysctl"):
        place = root.host_path("/usr/local/bin" if name == "systemctl" else "/usr/lib/systemd") / name
        place.unlink(missing_ok=True)
        place.write_text(f'#!/bin/sh\necho {name} "$@" >>/run/calls\n')
        place.chmod(0o755)
    booted = root.host_path("/run/systemd/system")
    booted.mkdir()
    root.run("dpkg", "--force-confold", "-i", "/run/routed.deb")
    assert calls.read_text().splitlines() == [
        "systemd-sysctl 90-routed.conf",
        "systemctl --system daemon-reload",
        "systemctl try-restart routed.service",
    ]
    booted.rmdir()
    root.host_path("/usr/local/bin/systemctl").unlink()
    assert root.host_path("/etc/routed/routed.yaml").read_text() == edited
    with flood(root.namespace.lab.namespaces["pod"]):
        service.restart()
        whole(service)


def test_reload(service: Service) -> None:
    configure(service.root, log={"level": "info", "format": "json"})
    service.reload()
    assert '"text": "reloaded' in service.log()
    configure(service.root)
    service.reload()
    assert any("RELOADING=1" in each for each in service.messages)


HANGING = """#!/usr/bin/python3 -IS
import signal, sys, time
sys.path.insert(0, "/usr/lib/routed")
def hang_here(*_):
    while True:
        time.sleep(1)
signal.signal(signal.SIGUSR2, hang_here)
from routed.daemon.main import main
sys.exit(main())
"""


def test_a_loop_that_hangs_is_ended_and_the_journal_says_where(service: Service, drop_in: Path) -> None:
    root = service.root
    service.stop()
    program = root.host_path("/usr/local/bin/hanging")
    program.write_text(HANGING)
    program.chmod(0o755)
    drop_in.write_text("[Service]\nExecStart=\nExecStart=/usr/local/bin/hanging run\nWatchdogSec=5\nRestartSec=0\n")
    with minded(root) as hanging:
        hanging.start()
        whole(hanging)
        first = hanging.pid
        with flood(root.namespace.lab.namespaces["pod"]):
            os.kill(first, signal.SIGUSR2)
            wait_for(lambda: hanging.results == ["watchdog"], SOON, "the watchdog bites", state=hanging.log)
            wait_for(lambda: hanging.pid != first and hanging.ready, SOON, "started again", state=hanging.log)
            whole(hanging)
        assert "Fatal Python error: Aborted" in hanging.log()
        assert "in hang_here" in hanging.log()
        hanging.stop()
        assert hanging.results == ["watchdog", "success"]


def test_a_wrong_configuration_is_not_tried_again(root: Root, service: Service) -> None:  # noqa: ARG001 - after it ran
    path = root.host_path("/etc/routed/routed.yaml")
    right = path.read_text()
    path.write_text("nodename: node\n")
    with minded(root) as wrong:
        with pytest.raises(Exception, match="did you mean `nodeName`"):
            wrong.start()
        wait_for(lambda: wrong.results == ["exit-code 78"], SOON, "it ended")
        path.write_text(right)
        time_of_end = time.monotonic()
        wait_for(lambda: time.monotonic() > time_of_end + 2.5, SOON, "longer than RestartSec")
        assert wrong.results == ["exit-code 78"]


# ---- the end


def test_removal_and_purge(root: Root, service: Service) -> None:
    service.close()
    root.run("systemctl", "enable", "routed")
    assert root.run("systemctl", "is-enabled", "routed").strip() == "enabled"
    installed = root.run("dpkg", "-L", "routed").split()
    root.run("dpkg", "-r", "routed")
    assert not root.host_path("/usr/bin/routed").exists()
    assert not root.host_path("/etc/systemd/system/multi-user.target.wants/routed.service").is_symlink()
    assert root.host_path("/etc/routed/routed.yaml").exists(), "the configuration stays until the purge"
    assert CLIENT in root.namespace.routes(protocol=120), "so do the routes"
    root.run("dpkg", "-P", "routed")
    kept = {"/etc/routed", "/etc/routed/resources"}
    ours = [path for path in installed if "routed" in path] + ["/var/lib/routed", "/run/routed"]
    assert [path for path in ours if path not in kept and root.host_path(path).exists()] == []
    assert root.run("sh", "-c", "getent passwd routed; getent group routed", check=False) == ""
    assert root.run("ls", "/etc/routed/resources").split() == ["all.yaml"], "what people wrote stays"
    assert not root.host_path("/etc/routed/routed.yaml").exists()


def test_the_same_sources_make_the_same_package(package: Path, tmp_path: Path) -> None:
    assert deb.build(tmp_path).read_bytes() == package.read_bytes()


def test_shell_scripts_are_sound() -> None:
    for script in sorted(deb.SCRIPTS.iterdir()):
        subprocess.run(["sh", "-n", str(script)], check=True)
        assert shlex.split(script.read_text().splitlines()[0]) == ["#!/bin/sh"]
