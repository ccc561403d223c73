"""The runner of containerlab's files on real namespaces: what a node sees and gets, `make lab`, and what a crash leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from routed.testing.lab import LabError, wait_for
from routed.testing.lab.clab import Topology, read_topology
from routed.testing.lab.deploy import RUNNING, Deployment, deployed, end, find, leave, names
from routed.testing.lab.expect import check, kernel_routes, read_expectation
from routed.testing.lab.namespaces import remove_stale, start_time
from tests.house.rooms import ROOT

LAB = (sys.executable, "-m", "routed.testing.lab")

TEXT = """\
name: t
topology:
  kinds:
    linux: {image: debian, network-mode: none}
  nodes:
    sw: {kind: bridge}
    a:
      kind: linux
      hostname: other-name
      env: {GREETING: "hello, world", PLAIN: 1}
      binds:
        - file:/etc/deep/down/file:ro
        - data:/data
        - file:/usr/local/bin/tool
      tmpfs: {/scratch: size=1m}
      sysctls: {net.ipv4.ip_forward: 1, net.ipv4.conf.default.rp_filter: 2}
      entrypoint: sh -c
      cmd: "'echo $$GREETING on $$(hostname); exec sleep infinity'"
      exec:
        - ip addr add 10.9.0.1/24 dev eth1
        - sh -c 'echo $$GREETING > /data/written'
        - "false"
    b: {kind: linux, exec: [ip addr add 10.9.0.2/24 dev eth0]}
    pod: {kind: linux, network-mode: "container:b", cmd: sleep 1000}
    br0|b: {kind: bridge, network-mode: "container:b"}
    c: {kind: linux, exec: [ip addr add 10.8.0.2/24 dev eth1]}
  links:
    - endpoints: ["a:eth1", "sw:p1"]
    - type: veth
      mtu: 1400
      endpoints:
        - {node: b, interface: eth0, mac: "02:00:00:00:00:0b"}
        - {node: sw, interface: p2}
    - endpoints: ["c:eth1", "br0|b:c1"]
"""


def topology(folder: Path) -> Topology:
    (folder / "data").mkdir()
    (folder / "file").write_text("bound\n")
    file = folder / "t.clab.yml"
    file.write_text(TEXT)
    return read_topology(file, {})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(topology(tmp_path_factory.mktemp("topology"))) as made:
        yield made


def inside(spaces: set[str]) -> list[tuple[int, int]]:
    """The processes in these network namespaces, each with when it started: numbers of both kinds are given out again, to
    other tests' processes and namespaces too."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/net") in spaces:
                found.append((pid, start_time(pid)))
    return found


class TestNode:
    def test_its_main_program_is_the_entrypoint_with_the_command(self, running: Deployment) -> None:
        node = running.nodes["a"]
        wait_for(lambda: node.log.read_text() == "hello, world on other-name\n", 30, state=node.log.read_text)
        wait_for(lambda: node.processes() == ["sleep"], 30, "the last of its commands", state=node.processes)
        other = running.nodes["b"]
        wait_for(lambda: other.processes() == ["sleep"], 30, "the image's own command", state=other.processes)

    def test_it_sees_what_is_bound_and_the_host_sees_what_it_writes_there_only(self, running: Deployment) -> None:
        node = running.nodes["a"]
        assert node.run("cat", "/etc/deep/down/file", "/usr/local/bin/tool") == "bound\nbound\n"
        assert not Path("/etc/deep").exists()
        assert not Path("/usr/local/bin/tool").exists()
        assert (running.file.parent / "data" / "written").read_text() == "hello, world\n"
        with pytest.raises(LabError, match="Read-only file system"):
            node.run("sh", "-c", "echo x > /etc/deep/down/file")
        for place in ("/.host/x", "/usr/bin/x", "/var/lib/x"):
            with pytest.raises(LabError, match="Read-only"):
                node.run("sh", "-c", f"echo x > {place}")
        node.run(
            "sh",
            "-c",
            "echo x > /etc/own; echo x > /usr/own; echo x > /tmp/own; echo x > /scratch/own; echo x > /var/tmp/own",
        )
        assert not any(Path(place, "own").exists() for place in ("/etc", "/usr", "/tmp", "/scratch", "/var/tmp"))
        assert "own" not in running.nodes["b"].run("ls", "/tmp", "/etc")

    def test_it_has_its_own_processes_host_name_and_settings(self, running: Deployment) -> None:
        node = running.nodes["a"]
        assert node.run("hostname").strip() == "other-name"
        assert node.run("cat", "/etc/hostname").strip() == "other-name"
        assert node.run("cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/conf/eth1/rp_filter") == "1\n2\n"
        assert running.nodes["b"].run("hostname").strip() == "b"
        assert node.run("sh", "-c", "echo $PLAIN") == "1\n"

    def test_links_are_as_the_file_says(self, running: Deployment) -> None:
        rows = {row["ifname"]: row for row in json.loads(running.nodes["b"].run("ip", "-j", "link"))}
        assert (rows["eth0"]["mtu"], rows["eth0"]["address"]) == (1400, "02:00:00:00:00:0b")
        assert json.loads(running.nodes["a"].run("ip", "-j", "link", "show", "eth1"))[0]["mtu"] == 9500
        assert set(running.nodes["c"].interfaces()) == {"eth1"}, "no interface appears by itself"
        wait_for(lambda: running.nodes["a"].pings("10.9.0.2"), 30, "a reaches b through the bridge")

    def test_a_network_may_be_shared(self, running: Deployment) -> None:
        assert running.nodes["pod"].interfaces() == running.nodes["b"].interfaces()
        assert running.nodes["pod"].run("hostname").strip() == "pod"
        running.nodes["b"].run("ip", "addr", "add", "10.8.0.1/24", "dev", "br0")
        wait_for(lambda: running.nodes["c"].pings("10.8.0.1"), 30, "c reaches the bridge inside b")

    def test_a_command_that_fails_is_told_and_the_rest_goes_on(self, running: Deployment) -> None:
        assert running.failures == ("a: `false` failed (1): ",)
        assert "10.9.0.0/24" in kernel_routes(running.nodes["a"], ipv6=False)

    def test_power_comes_and_goes(self, running: Deployment) -> None:
        node = running.nodes["b"]
        node.power_off()
        assert node.processes() == []
        assert kernel_routes(node, ipv6=False) == {}
        assert not running.nodes["a"].pings("10.9.0.2", timeout=0.2)
        node.power_on()
        wait_for(lambda: node.processes() == ["sleep"] and running.nodes["a"].pings("10.9.0.2"), 30, "b is back")


def test_daemons_of_every_image_find_their_configuration(tmp_path: Path) -> None:
    """A `startup-config` goes where the image's daemon reads it: routed, BIRD, FRR and GoBGP speak with each other."""
    (tmp_path / "resources").mkdir()
    peers = "".join(
        f"---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: p{number}}}\n"
        f"spec: {{peerIP: 10.9.0.{number}, asNumber: 6500{number}}}\n"
        for number in (2, 3, 4)
    )
    node = (
        "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: r1}\nspec: {bgp: {ipv4Address: 10.9.0.1/24}}\n"
    )
    (tmp_path / "resources" / "all.yaml").write_text(node + peers)
    (tmp_path / "r1").write_text("datastore: {type: file, path: /etc/routed/resources}\n")
    (tmp_path / "r2").write_text(
        "router id 10.9.0.2;\nprotocol device {}\nprotocol bgp r1 { local 10.9.0.2 as 65002;"
        " neighbor 10.9.0.1 as 64512; connect delay time 1; ipv4 { import all; export none; }; }\n"
    )
    (tmp_path / "r3").write_text("router bgp 65003\n no bgp ebgp-requires-policy\n neighbor 10.9.0.1 remote-as 64512\n")
    (tmp_path / "daemons").write_text("bgpd=yes\nvtysh_enable=yes\n")
    (tmp_path / "r4").write_text(
        '[global.config]\nas = 65004\nrouter-id = "10.9.0.4"\n[[neighbors]]\n[neighbors.config]\n'
        'neighbor-address = "10.9.0.1"\npeer-as = 64512\n[neighbors.timers.config]\nconnect-retry = 5\n'
    )
    images = {"r1": "routed:lab", "r2": "bird:lab", "r3": "quay.io/frrouting/frr:10.5.1", "r4": "osrg/gobgp"}
    binds = {"r1": "resources:/etc/routed/resources", "r3": "daemons:/etc/frr/daemons"}
    text = (
        "name: four\ntopology:\n  kinds:\n    linux: {startup-config: __clabNodeName__, network-mode: none}\n  nodes:\n"
    )
    text += "    sw: {kind: bridge}\n"
    links = "  links:\n"
    for number, (name, image) in enumerate(images.items(), 1):
        bound = f", binds: ['{binds[name]}']" if name in binds else ""
        text += (
            f"    {name}: {{kind: linux, image: '{image}', exec: [ip addr add 10.9.0.{number}/24 dev eth0]{bound}}}\n"
        )
        links += f"    - endpoints: ['{name}:eth0', 'sw:p{number}']\n"
    file = tmp_path / "four.clab.yml"
    file.write_text(text + links)
    (tmp_path / "expect.yaml").write_text(
        "within: 60\nholds: {sessions: {r1: [10.9.0.2, 10.9.0.3, 10.9.0.4],"
        " r2: [10.9.0.1], r3: [10.9.0.1], r4: [10.9.0.1]}}\n"
    )
    made = read_topology(file, {})
    with deployed(made) as lab:
        try:
            check(lab, read_expectation(tmp_path / "expect.yaml", made))
        except AssertionError as error:
            error.add_note(lab.report())
            raise


class TestEnd:
    @pytest.mark.parametrize(
        ("line", "refusal"),
        [
            ("image: no/such", "no program of this machine stands for the image no/such"),
            ("startup-config: file", "startup-config: nothing in the image .* reads one; use binds"),
        ],
    )
    def test_what_is_refused_leaves_nothing(self, tmp_path: Path, line: str, refusal: str) -> None:
        made = topology(tmp_path)
        broken = tmp_path / "broken.clab.yml"
        broken.write_text(made.file.read_text().replace("hostname: other-name", f"hostname: other-name\n      {line}"))
        name = f"test-refused-{os.getpid()}"
        with pytest.raises(LabError, match=refusal):
            leave(read_topology(broken, {}), name)
        assert name not in names()

    def test_a_failure_takes_all_of_it_down(self, tmp_path: Path) -> None:
        made = topology(tmp_path)
        broken = tmp_path / "broken.clab.yml"
        broken.write_text(made.file.read_text().replace("net.ipv4.ip_forward", "net.ipv4.no_such_thing"))
        refusal = r"broken.clab.yml:\d+:7: node a could not be made: .*sysctl net.ipv4.no_such"
        with pytest.raises(LabError, match=refusal), deployed(read_topology(broken, {})):
            pass

    def test_whoever_made_it_is_killed(self, tmp_path: Path) -> None:
        """Nothing asks the nodes to end: the pipe to them does."""
        file = topology(tmp_path).file
        program = (
            "import sys, time\nfrom pathlib import Path\nfrom routed.testing.lab.clab import read_topology\n"
            "from routed.testing.lab.deploy import deployed\n"
            "with deployed(read_topology(Path(sys.argv[1]), {})) as lab:\n"
            "    print(lab.folder, *[node.pid for node in lab.nodes.values()], flush=True)\n    time.sleep(100)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        folder, *pids = process.stdout.readline().split()
        programs = inside({os.readlink(f"/proc/{pid}/ns/net") for pid in pids})
        assert len(pids) == 6 and len(programs) >= 6
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(
            lambda: not any(start_time(pid) == started for pid, started in programs),
            30,
            "all in their networks is gone",
        )
        remove_stale()  # the next laboratory does, and one of another test may be at it
        wait_for(lambda: not Path(folder).exists(), 30, "its folder is removed")

    def test_a_program_that_was_stopped_holds_nobody_up(self, tmp_path: Path) -> None:
        """Who wants to see a hold timer run out stops the daemon: it ends none the less, and so does the node."""
        with deployed(topology(tmp_path)) as lab:
            node = lab.nodes["a"]
            for _ in range(2):
                wait_for(lambda: "sleep" in node.processes(), 30, "its program runs")
                node.run("pkill", "-STOP", "sleep")
                node.kill()
                node.start()
            wait_for(lambda: "sleep" in node.processes(), 30, "its program runs")
            node.run("pkill", "-STOP", "sleep")
        assert not node.alive

    def test_one_that_died_halfway_is_in_nobodys_way(self, tmp_path: Path) -> None:
        name = f"test-half-{os.getpid()}"
        made = topology(tmp_path)
        try:
            lab, was_there = leave(made, name)
            assert not was_there
            os.kill(lab.nodes["c"].pid, signal.SIGKILL)
            wait_for(lambda: find(name) is None, 30, "it is not whole any more")
            again, was_there = leave(made, name)
            assert not was_there
            assert again.alive
            wait_for(lambda: not any(node.alive for node in lab.nodes.values()), 30, "what was left of it is gone")
        finally:
            assert end(name)
        assert not (RUNNING / name).exists()


class TestMake:
    def test_up_again_beside_and_down(self) -> None:
        """`make lab` twice, another one of the same beside it, questions to both, and `make lab-down`, twice too."""
        one, other = f"test-one-{os.getpid()}", f"test-other-{os.getpid()}"

        def make(*words: str) -> str:
            done = subprocess.run(
                ["make", "-C", str(ROOT), "--no-print-directory", *words], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        def ask(name: str, *words: str) -> str:
            done = subprocess.run([*LAB, "exec", name, *words], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        try:
            said = make("lab", "TOPO=mesh-3", f"NAME={one}")
            assert f"{one} is up: 7 nodes" in said.splitlines()
            assert f"-m routed.testing.lab shell {one} node1\n" in said
            assert f"-m routed.testing.lab exec {one} node1 routedctl show neighbors\n" in said
            assert f"make lab-down TOPO={one}" in said
            first = find(one)
            assert f"{one} is up already: 7 nodes" in make("lab", "TOPO=mesh-3", f"NAME={one}").splitlines()
            assert find(one) == first
            make("lab", "TOPO=mesh-3", f"NAME={other}")
            for name in (one, other):
                wait_for(
                    lambda name=name: ask(name, "node1", "routedctl", "show", "neighbors").count("Established") == 2,
                    30,
                    name,
                )
            shell = subprocess.run(
                [*LAB, "shell", one, "node2"],
                input="routedctl version; hostname\n",
                capture_output=True,
                text=True,
                check=False,
            )
            assert shell.stdout.splitlines()[-1] == "node2"
            assert make("lab-down", f"TOPO={one}") == f"{one} is down\n"
            assert find(one) is None
            assert find(other) is not None
            assert make("lab-down", f"TOPO={one}") == f"{one} is not up\n"
        finally:
            end(one)
            end(other)

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (("up", "containerlab/nowhere"), "containerlab/nowhere: No such file or directory"),
            (("up", "containerlab"), "there are 0 files *.clab.yml in it, not one"),
            (("up", "containerlab/mesh-3", "--as", "../x"), "`../x` can't be a laboratory's name"),
            (("exec", "no-such-lab", "node1", "ls"), "no laboratory `no-such-lab` is up"),
        ],
    )
    def test_what_cannot_be_is_one_sentence(self, words: tuple[str, ...], sentence: str) -> None:
        done = subprocess.run([*LAB, *words], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 1
        assert done.stderr.startswith("lab: ")
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1


#: Goes on once a dozen more packets have come from a, however long nobody sends any.
SEND = (
    "\"run sw sh -c 'now() { set -- $(grep p1: /proc/net/dev); echo $3; }; end=$(($(now) + 12));"
    " until [ $(now) -ge $end ]; do sleep 0.05; done'\""
)


class TestExpectations:
    """The checker tells what is not so: otherwise every topology would pass."""

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            (
                "within: 1\nholds: {routes: {a: {10.9.0.0/24: 10.9.0.9}}}\n",
                "a: 10.9.0.0/24 goes dev eth1, not 10.9.0.9",
            ),
            ("within: 1\nholds: {routes: {a: {10.9.0.0/24: none}}}\n", "a: 10.9.0.0/24 goes dev eth1, not nowhere"),
            ("within: 1\nholds: {pings: {a: [10.9.0.77]}}\n", "a: no answer from 10.9.0.77"),
            (
                (
                    f"steps: [{{title: cut, do: [link sw p2 down, {SEND}, link sw p2 up], flows: [a > 10.9.0.2],"
                    " loses: nothing, holds: {pings: {a: [10.9.0.2]}}}]\n"
                ),
                r"cut: a > 10\.9\.0\.2: \d+ of \d+ packets lost",
            ),
            (
                (
                    "steps: [{title: cut, do: [run a ip route add 10.1.0.0/16 via 10.9.0.2, run a sleep 0.5],"
                    " keeps: {a: {10.1.0.0/16: none}}}]\n"
                ),
                r"cut: meanwhile a: 10\.1\.0\.0/16 goes 10\.9\.0\.2, not nowhere",
            ),
            (
                # gone for an instant: no look at it would see that
                (
                    "steps: [{title: cut, do: [run a ip route add 10.2.0.0/16 via 10.9.0.2]},"
                    " {title: flap, keeps: {a: {10.2.0.0/16: 10.9.0.2}}, do: [run a sleep 0.3,"
                    " \"run a sh -c 'ip route del 10.2.0.0/16; ip route add 10.2.0.0/16 via 10.9.0.2'\"]}]\n"
                ),
                r"flap: meanwhile .*a: 10\.2\.0\.0/16 was removed",
            ),
        ],
    )
    def test_what_does_not_hold_is_told(self, running: Deployment, tmp_path: Path, text: str, sentence: str) -> None:
        made = read_topology(running.file, {})
        (tmp_path / "expect.yaml").write_text(text)
        lab = Deployment(running.name, running.file, running.folder, running.nodes)
        wait_for(lambda: lab.nodes["a"].pings("10.9.0.2"), 30, "a reaches b")
        with pytest.raises(AssertionError, match=sentence):
            check(lab, read_expectation(tmp_path / "expect.yaml", made))

    def test_a_cut_that_never_heals_is_told(self, running: Deployment, tmp_path: Path) -> None:
        """No answer follows the gap, which is none the less there."""
        made = read_topology(running.file, {})
        (tmp_path / "expect.yaml").write_text(
            f"steps: [{{title: cut, do: [link sw p2 down, {SEND}], flows: [a > 10.9.0.2], loses: nothing}}]\n"
        )
        lab = Deployment(running.name, running.file, running.folder, running.nodes)
        wait_for(lambda: lab.nodes["a"].pings("10.9.0.2"), 30, "a reaches b")
        try:
            with pytest.raises(AssertionError, match=r"cut: a > 10\.9\.0\.2: \d+ of \d+ packets lost"):
                check(lab, read_expectation(tmp_path / "expect.yaml", made))
        finally:
            lab.nodes["sw"].run("ip", "link", "set", "p2", "up")
