"""`make demo`: a small cluster on this machine, shown to somebody who has never seen routed.

Three nodes, a top-of-rack switch (BIRD), a host behind it and a pod on every node, all network namespaces. The demo
starts the daemons, waits until they agree, shows sessions and routes, and sends packets everywhere. Exit status 0: all
of it worked; 1: one sentence on standard error says what did not. Everything is removed again either way.

The daemons are the real ones with real files for a configuration: what is here is what a cluster would have, except that
nobody but the demo makes pods.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from routed.testing.lab import Lab, LabError, Namespace, run, wait_for
from routed.testing.routers import Bird, Json, Routed, missing, resource

CLUSTER_AS = 64512
TOR_AS = 65000
TOR = ("10.10.0.254", "fd00:10::254")
NODES = (1, 2, 3)
POOLS = ("10.244.0.0/16", "fd00:10:244::/48")
CLIENT = ("192.168.50.10", "fd00:50::10")
CLIENT_NETS = ("192.168.50.0/24", "fd00:50::/64")

#: Where a pod sends everything, and the hardware address of its end on the node: Calico's.
POD_GATEWAY = "169.254.1.1"
HOST_MAC = "ee:ee:ee:ee:ee:ee"
HOST_LINK_LOCAL = "fe80::ecee:eeff:feee:eeee"

#: Seconds the daemons have to agree.
PATIENCE = 45.0

INTRODUCTION = """\
routed demo: three nodes, one top-of-rack switch, packets between pods
======================================================================

            client 192.168.50.10, fd00:50::10
               |
              ToR   BIRD, AS 65000, 10.10.0.254, fd00:10::254
               |
      ---------+---------------------+---------------------+----- 10.10.0.0/24, fd00:10::/64
               |                     |                     |
             node-1                node-2                node-3        routed, AS 64512, 10.10.0.1 to .3
               |                     |                     |
             pod-1                 pod-2                 pod-3         10.244.N.2, fd00:10:244:N::2

Each box is a network namespace of this machine. The nodes speak iBGP with each other (a mesh) and eBGP with the switch.
No tunnels and no static routes: every route to a pod or to the client below was learned by BGP.
"""


def pod_addresses(number: int) -> tuple[str, str]:
    return f"10.244.{number}.2", f"fd00:10:244:{number}::2"


def blocks(number: int) -> tuple[str, str]:
    """The addresses node `number` gives to its pods: one block of each pool."""
    return f"10.244.{number}.0/26", f"fd00:10:244:{number}::/122"


def resources() -> list[Json]:
    """The cluster as Calico's resources: what a node's daemon reads from its datastore."""
    found = [
        resource("BGPConfiguration", "default", {"asNumber": CLUSTER_AS, "nodeToNodeMeshEnabled": True}),
        resource("IPPool", "pods", {"cidr": POOLS[0], "blockSize": 26}),
        resource("IPPool", "pods-v6", {"cidr": POOLS[1], "blockSize": 122}),
        resource("BGPPeer", "tor", {"peerIP": TOR[0], "asNumber": TOR_AS}),
        resource("BGPPeer", "tor-v6", {"peerIP": TOR[1], "asNumber": TOR_AS}),
    ]
    for number in NODES:
        node = f"node-{number}"
        addresses = {"ipv4Address": f"10.10.0.{number}/24", "ipv6Address": f"fd00:10::{number}/64"}
        found.append(resource("Node", node, {"bgp": addresses}))
        for name, cidr in zip((node, f"{node}-v6"), blocks(number), strict=True):
            found.append(resource("BlockAffinity", name, {"node": node, "cidr": cidr, "state": "confirmed"}))
    return found


def bird_config() -> str:
    """The switch: takes the cluster's routes into its kernel, announces the network the client is in."""
    sessions = "\n".join(
        f"protocol bgp node_{number}_{suffix} from {suffix} {{ neighbor {address} as {CLUSTER_AS}; }}"
        for number in NODES
        for suffix, address in (("v4", f"10.10.0.{number}"), ("v6", f"fd00:10::{number}"))
    )
    return f"""
router id {TOR[0]};
protocol device {{ scan time 1; }}
protocol direct {{ ipv4; ipv6; interface "client0"; }}
protocol kernel {{ ipv4 {{ import none; export all; }}; merge paths on; }}
protocol kernel {{ ipv6 {{ import none; export all; }}; merge paths on; }}
template bgp v4 {{
    local {TOR[0]} as {TOR_AS};
    ipv4 {{ import all; export where source = RTS_DEVICE; }};
}}
template bgp v6 {{
    local {TOR[1]} as {TOR_AS};
    ipv6 {{ import all; export where source = RTS_DEVICE; }};
}}
{sessions}
"""


class Demo:
    """The network, and what is asked of it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.nodes: dict[int, Namespace] = {}
        self.pods: dict[int, Namespace] = {}
        rack = lab.segment("rack")
        self.tor = lab.namespace("tor", forward=True)
        rack.attach(self.tor, "rack0", f"{TOR[0]}/24", f"{TOR[1]}/64")
        self.client = lab.namespace("client")
        lab.link(
            self.tor.port("client0", "192.168.50.1/24", "fd00:50::1/64"),
            self.client.port("eth0", f"{CLIENT[0]}/24", f"{CLIENT[1]}/64"),
        )
        self.client.route("add default via 192.168.50.1")
        self.client.route("add default via fd00:50::1")
        for number in NODES:
            node = self.nodes[number] = lab.namespace(f"node-{number}", forward=True)
            rack.attach(node, "eth0", f"10.10.0.{number}/24", f"fd00:10::{number}/64")
            self.pods[number] = self._pod(number, node)
        self.switch = Bird(self.tor, bird_config())
        self.daemons = [Routed(node) for node in self.nodes.values()]

    def _pod(self, number: int, node: Namespace) -> Namespace:
        """A pod as Calico plugs one in: a veth, a host route on the node, and a gateway that is no address anywhere."""
        pod = self.lab.namespace(f"pod-{number}")
        v4, v6 = pod_addresses(number)
        self.lab.link(node.port("cali0"), pod.port("eth0", f"{v4}/32", f"{v6}/128"))
        node.ip(
            f"link set cali0 address {HOST_MAC}",
            f"addr replace {HOST_LINK_LOCAL}/64 dev cali0 nodad",
            f"route add {v4}/32 dev cali0",
            f"route add {v6}/128 dev cali0",
        )
        pod.ip(
            f"route add {POD_GATEWAY} dev eth0 scope link",
            f"route add default via {POD_GATEWAY} dev eth0",
            f"neigh add {POD_GATEWAY} dev eth0 lladdr {HOST_MAC} nud permanent",
            f"route add default via {HOST_LINK_LOCAL} dev eth0",
            f"neigh add {HOST_LINK_LOCAL} dev eth0 lladdr {HOST_MAC} nud permanent",
        )
        return pod

    def start(self) -> None:
        self.switch.launch()
        for daemon in self.daemons:
            daemon.put(*resources())
            daemon.launch()
        for daemon in self.daemons:
            wait_for(daemon.answers, PATIENCE, f"routed on {daemon.node_name} to answer")

    # ---- what must become true

    def settle(self) -> None:
        """Wait until every session is up and every route is where it belongs. Raises AssertionError."""
        wait_for(lambda: not self._sessions_down(), PATIENCE, "every BGP session to be up", state=self._sessions_down)
        wait_for(lambda: not self._missing(), PATIENCE, "every route to be in the kernels", state=self._missing)

    def _sessions_down(self) -> list[str]:
        down = []
        for daemon in self.daemons:
            sessions = daemon.sessions()
            down += [
                f"{daemon.node_name} to {address}: {state}"
                for address, state in sessions.items()
                if state != "Established"
            ]
            if len(sessions) != 2 * len(NODES):
                down.append(f"{daemon.node_name} knows {len(sessions)} neighbors, not {2 * len(NODES)}")
        return down

    def _missing(self) -> list[str]:
        """Routes that are not there yet."""
        missing = []
        for ipv6 in (False, True):
            cluster = {blocks(number)[ipv6] for number in NODES}
            for node in self.nodes.values():
                there = node.routes(protocol=120, ipv6=ipv6)
                missing += [
                    f"{prefix} on {node.name}" for prefix in sorted({*cluster, CLIENT_NETS[ipv6]} - there.keys())
                ]
            there = self.tor.routes(protocol="bird", ipv6=ipv6)
            missing += [f"{prefix} on the switch" for prefix in sorted(cluster - there.keys())]
        return missing

    # ---- what there is to see

    def show_sessions(self) -> None:
        for daemon in self.daemons:
            say(f"{daemon.node_name}$ routedctl show neighbors")
            say(indent(daemon.ctl("show", "neighbors")))
        say("tor$ birdc show protocols")
        lines = self.switch.ctl("show", "protocols").splitlines()
        say(indent(line for line in lines if " BGP " in line or line.startswith("Name")))

    def show_routes(self) -> None:
        for node in self.nodes.values():
            for family in ("-4", "-6"):
                say(f"{node.name}$ ip {family} route show proto 120")
                say(indent(run("ip", family, "-n", node.full_name, "route", "show", "proto", "120")))
        for family in ("-4", "-6"):
            say(f"tor$ ip {family} route show proto bird")
            say(indent(run("ip", family, "-n", self.tor.full_name, "route", "show", "proto", "bird")))

    def show_one_route(self) -> None:
        prefix = blocks(2)[0]
        say(f"node-1$ routedctl show route {prefix} --all")
        say(indent(self.daemons[0].ctl("show", "route", prefix, "--all")))

    def ping_all(self) -> list[str]:
        """Everybody to everybody, both families. Who could not be reached."""
        ends = [(f"pod-{number}", self.pods[number], pod_addresses(number)) for number in NODES]
        ends.append(("client", self.client, CLIENT))
        failures = []
        for ipv6 in (False, True):
            say(f"  {'IPv6' if ipv6 else 'IPv4':8}" + "".join(f"{name:>9}" for name, _, _ in ends))
            for name, namespace, _ in ends:
                line = f"  {name:8}"
                for other, target, addresses in ends:
                    if target is namespace:
                        line += f"{'-':>9}"
                        continue
                    good = namespace.pings(addresses[ipv6], timeout=2)
                    line += f"{'ok' if good else 'LOST':>9}"
                    if not good:
                        failures.append(f"{name} to {other} ({addresses[ipv6]})")
                say(line)
        return failures


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def title(text: str, why: str) -> None:
    say(f"\n--- {text}\n    {why}\n")


def indent(lines: str | Iterable[str]) -> str:
    return "\n".join("  " + line.rstrip() for line in (lines.splitlines() if isinstance(lines, str) else lines)) + "\n"


def show() -> str:
    """The whole demo. What went wrong, in a sentence, or nothing."""
    started = time.monotonic()
    say(INTRODUCTION)
    with Lab() as lab:
        demo = Demo(lab)
        demo.start()
        say("Starting three routed and one BIRD; waiting until they agree ...")
        try:
            demo.settle()
        except AssertionError as error:
            say(lab.report(15))
            return f"the network did not settle: {error}"
        say(f"They agree, {time.monotonic() - started:.1f} s after the start.")
        title(
            "Sessions",
            "Each node holds four sessions in the mesh and two with the switch: one for IPv4, one for IPv6 each.",
        )
        demo.show_sessions()
        title(
            "Routes in the nodes' kernels",
            "What routed put there (protocol 120). The others' blocks lead to their nodes, the client's network to the\n"
            "    switch; a node's own block is a blackhole, so that packets to addresses no pod has end here.\n"
            "    The switch hears of each block from every node and spreads its packets over them.",
        )
        demo.show_routes()
        title("Why a route is as it is", "Every path a node was offered, which one it took, and the step that decided.")
        demo.show_one_route()
        title(
            "Packets",
            "One ping from each pod and from the client (rows) to each other (columns), over the routes above.",
        )
        failures = demo.ping_all()
    if failures:
        return f"{len(failures)} of 24 pings got no answer: {', '.join(failures)}"
    say(f"\nAll 24 pings answered. The namespaces are gone again; this took {time.monotonic() - started:.0f} s.")
    return ""


def main() -> int:
    if missing("bird"):
        sys.stderr.write("demo: BIRD 2 is not installed: `make demo` installs what is needed\n")
        return 1
    try:
        failure = show()
    except LabError as error:
        failure = str(error)
    except KeyboardInterrupt:
        failure = "interrupted"
    if failure:
        sys.stderr.write(f"demo: FAILED: {failure}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
