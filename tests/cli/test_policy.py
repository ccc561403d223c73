"""`routedctl policy explain` and `policy test` on a datastore of files, without a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from routed.cli.main import main

DATASTORE = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIP: 10.65.1.2}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api}}
spec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.65.2.2}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-web-to-api, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: http}]
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 10}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: security.no-dns-outside}
spec:
  tier: security
  selector: has(app)
  types: [Egress]
  egress:
  - {action: Deny, protocol: UDP, destination: {notNets: [10.0.0.0/8], ports: [53]}}
  - {action: Pass}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "all.yaml").write_text(DATASTORE)
    path = tmp_path / "routed.yaml"
    path.write_text(f"nodeName: n1\nrunDir: {tmp_path}/run\ndatastore: {{type: file, path: {tmp_path}/resources}}\n")
    return str(path)


def test_explain_names_the_policy_the_rule_and_the_tiers_on_both_nodes(config: str, capsys: pytest.CaptureFixture[str]):
    words = ["policy", "explain", "--from", "shop/web", "--to", "shop/api", "--port", "http", "--config", config]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["verdict"] == "allow" and answer["port"] == 8080
    assert answer["reason"] == "NetworkPolicy shop/knp.default.allow-web-to-api ingress 1"
    assert [node["node"] for node in answer["nodes"]] == ["n1", "n2"]
    assert [(step["direction"], step["tier"], step["action"]) for step in answer["nodes"][0]["steps"]] == [
        ("egress", "security", "pass"),
        ("egress", "profiles", "allow"),
    ]
    assert answer["kernel"] is None
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "shop/web (10.65.1.2) -> shop/api (10.65.2.2) TCP port 8080: allow" in text
    assert "the kernel was not asked: " in text


def test_explain_says_what_denies(config: str, capsys: pytest.CaptureFixture[str]):
    words = ["policy", "explain", "--from", "192.0.2.7", "--to", "shop/api", "--port", "80", "--config", config]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["reason"]) == ("deny", "end of default")


@pytest.mark.parametrize(
    ("source", "port", "proto", "words"),
    [
        ("shop/nobody", "80", "tcp", "there is no such pod"),
        ("n9", "80", "tcp", "neither NAMESPACE/POD"),
        ("shop/web", "metrics", "tcp", "no port of the name"),
        ("shop/web", "80", "gre", "a protocol is tcp, udp, sctp, udplite, icmp, icmpv6 or a number"),
        ("fd00::1", "80", "tcp", "no addresses of one family"),
    ],
)
def test_explain_says_what_is_wrong_with_the_question(
    config: str, capsys: pytest.CaptureFixture[str], source: str, port: str, proto: str, words: str
):
    arguments = ["--from", source, "--to", "shop/api", "--port", port, "--proto", proto, "--config", config]
    assert main(["policy", "explain", *arguments]) != 0
    assert words in capsys.readouterr().err


def test_expectations(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "expectations.yaml"
    path.write_text(
        "- {from: shop/web, to: shop/api, port: http, verdict: allow}\n"
        "- {from: 10.9.9.9, to: shop/api, port: 8080, verdict: deny}\n"
        "- {from: shop/api, to: 192.0.2.53, port: 53, proto: udp, verdict: deny}\n"
        "- {from: shop/api, to: 10.0.0.53, port: 53, proto: udp, verdict: allow}\n"
    )
    assert main(["policy", "test", str(path), "--config", config]) == 0
    assert capsys.readouterr().out == "4 expectations, 0 failed\n"
    path.write_text(path.read_text() + "- {from: shop/web, to: shop/api, port: 81, verdict: allow}\n")
    assert main(["policy", "test", str(path), "--config", config]) == 1
    out = capsys.readouterr().out
    assert f"FAILED {path}:5: shop/web -> shop/api tcp/81: expected allow, it is deny, by end of default" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {from: a/b, to: c/d, port: 1}\n", ":1: an expectation has from"),
        ("- {from: a/b, to: c/d, port: 1, verdict: maybe}\n", "must be allow or deny"),
        ("- {from: a/b, to: c/d, port: 1, verdict: no}\n", ":1: verdict: must be a word or a number, not false"),
        ("- {from: null, to: c/d, port: 1, verdict: deny}\n", ":1: an expectation has from"),
        ("- {from: shop/web, to: shop/api, port: null, verdict: deny}\n", ":1: say to which port"),
        ("- {from: shop/web, to: shop/api, port: 1, family: 6, verdict: deny}\n", ":1: family: must be ipv4 or ipv6"),
        ("- {from: shop/web, to: shop/api, port: [1], verdict: deny}\n", ":1: port: must be a word or a number"),
        ("\n", "no expectations"),
        ("- [\n", "YAML"),
    ],
)
def test_expectations_that_are_none(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
):
    path = tmp_path / "expectations.yaml"
    path.write_text(text)
    assert main(["policy", "test", str(path), "--config", config]) == 78
    assert words in capsys.readouterr().err


PINGS = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: pings, namespace: shop}
spec:
  selector: app == 'api'
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: ICMP, icmp: {type: 8}}
  - {action: Allow, protocol: TCP, source: {ports: [1234]}}
"""


def test_icmp_has_a_type_and_a_rule_may_ask_for_the_source_port(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "resources" / "pings.yaml").write_text(PINGS)
    path = tmp_path / "expectations.yaml"
    path.write_text(
        "- {from: 10.9.9.9, to: shop/api, proto: icmp, verdict: allow}\n"
        "- {from: 10.9.9.9, to: shop/api, proto: icmp, icmpType: 13, verdict: deny}\n"
        "- {from: 10.9.9.9, to: shop/web, proto: icmp, icmpType: 13, verdict: allow}\n"
        "- {from: 10.9.9.9, to: shop/web, proto: icmp, icmpType: 14, verdict: deny}\n"
        "- {from: 10.9.9.9, to: shop/web, proto: udplite, port: 99, verdict: allow}\n"
        "- {from: 10.9.9.9, to: shop/api, port: 99, verdict: deny}\n"
        "- {from: 10.9.9.9, to: shop/api, port: 99, sourcePort: 1234, verdict: allow}\n"
    )
    assert main(["policy", "test", str(path), "--config", config]) == 0, capsys.readouterr()
    ask = ["policy", "explain", "--from", "10.9.9.9", "--to", "shop/api", "--config", config]
    assert main([*ask, "--proto", "icmp"]) == 0
    assert "ICMP type 8: allow, by NetworkPolicy shop/pings ingress 1" in capsys.readouterr().out
    assert main([*ask, "--proto", "icmp", "--icmp-type", "13"]) == 0
    assert "type 13: deny" in capsys.readouterr().out
    assert main([*ask[:-4], "--to", "shop/web", *ask[-2:], "--proto", "icmp", "--icmp-type", "0"]) == 0
    assert "type 0: deny, by of no connection" in capsys.readouterr().out
    for wrong, said in (
        (["--proto", "icmp", "--port", "80"], "no ports"),
        (["--icmp-type", "8", "--port", "80"], "only icmp and icmpv6"),
        ([], "say to which port"),
        (["--proto", "icmp", "--icmp-type", "256"], "a type is a number up to 255"),
    ):
        assert main([*ask, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_where_nodes_may_go_on_with_what_was_last_good_nothing_is_sure(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "resources" / "tier.yaml").write_text(
        "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: late}\nspec: {order: one}\n"
    )
    path = tmp_path / "expectations.yaml"
    path.write_text("- {from: shop/web, to: shop/api, port: http, verdict: allow}\n")
    assert main(["policy", "test", str(path), "--config", config]) == 1
    out = capsys.readouterr().out
    assert "FAILED nothing is sure: " in out and "nodes go on with its last good version" in out
    main(["policy", "explain", "--from", "shop/web", "--to", "shop/api", "--port", "http", "--config", config])
    assert "the datastore cannot say for sure: " in capsys.readouterr().out


TWINS = """
apiVersion: v1
kind: Pod
metadata: {name: twin, namespace: shop, labels: {app: twin}}
spec: {nodeName: n2, containers: [{name: c}]}
status: {podIP: 10.65.2.3, podIPs: [{ip: 10.65.2.3}, {ip: "fd65::3"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, labels: {app: other}}
spec: {nodeName: n1, containers: [{name: c}]}
status: {podIP: 10.65.1.3, podIPs: [{ip: 10.65.1.3}, {ip: "fd65::1:3"}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: six, namespace: shop}
spec:
  selector: app == 'twin'
  types: [Ingress]
  ingress:
  - {action: Allow, protocol: ICMPv6, icmp: {type: 128}}
  - {action: Allow, protocol: TCP, ipVersion: 6, source: {ports: [0]}}
"""


def test_icmp_is_of_one_family_and_of_tcp_one_may_say_which(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "resources" / "twins.yaml").write_text(TWINS)
    path = tmp_path / "expectations.yaml"
    path.write_text(
        "- {from: shop/other, to: shop/twin, proto: icmpv6, verdict: allow}\n"
        "- {from: shop/other, to: shop/twin, proto: icmp, verdict: deny}\n"
        "- {from: shop/other, to: shop/twin, port: 80, sourcePort: 0, verdict: deny}\n"
        "- {from: shop/other, to: shop/twin, port: 80, sourcePort: 0, family: ipv6, verdict: allow}\n"
    )
    assert main(["policy", "test", str(path), "--config", config]) == 0, capsys.readouterr()
    ask = ["policy", "explain", "--from", "shop/other", "--to", "shop/twin", "--config", config]
    assert main([*ask, "--port", "80", "--source-port", "0", "--family", "ipv6"]) == 0
    assert "shop/twin (fd65::3) TCP port 80: allow" in capsys.readouterr().out
    assert main([*ask[:-4], "--to", "fd65::3", "--proto", "icmp", "--config", config]) == 1
    assert "have no addresses of ipv4-unicast" in capsys.readouterr().err
    for wrong, said in (
        (["--proto", "icmp", "--family", "ipv6"], "the ICMP of ipv6 is icmpv6"),
        (["--port", "\u00b2"], "has no port of the name"),
        (["--port", "9" * 5000], "has no port of the name"),
        (["--proto", "\u00b2"], "a protocol is"),
        (["--proto", "icmp", "--icmp-type", "\u00b2"], "a type is a number"),
    ):
        assert main([*ask, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_an_expectation_of_nobody_fails_and_the_others_are_tried(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "expectations.yaml"
    path.write_text(
        "- {from: shop/nobody, to: shop/api, port: 1, verdict: deny}\n"
        "- {from: shop/web, to: shop/api, port: 81, verdict: allow}\n"
    )
    assert main(["policy", "test", str(path), "--config", config]) == 1
    out = capsys.readouterr().out
    assert f"FAILED {path}:1: shop/nobody: there is no such pod" in out and f"FAILED {path}:2: " in out


HOST_AND_BROKEN = """
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n1}
spec: {bgp: {ipv4Address: 192.0.2.1/24}}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {failsafeInboundHostPorts: [{protocol: tcp, port: 2222}], defaultEndpointToHostAction: Drop}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: n1-eth0, labels: {role: host}}
spec: {node: n1, interfaceName: eth0, expectedIPs: [192.0.2.1]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: into-nodes}
spec: {selector: role == 'host', types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: through-nodes}
spec:
  selector: role == 'host'
  applyOnForward: true
  types: [Egress]
  egress: [{action: Deny, protocol: UDP, destination: {ports: [99]}}, {action: Allow}]
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: broken, namespace: shop}
spec: {selector: app == 'web', types: [Ingress], ingress: [{action: Allow, source: {nets: [10.0.0.0/40]}}]}
"""


def test_host_endpoints_felix_and_what_cannot_be_read_count_as_they_do_on_a_node(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "resources" / "host.yaml").write_text(HOST_AND_BROKEN)
    path = tmp_path / "expectations.yaml"
    path.write_text(
        "- {from: 192.0.2.99, to: n1, port: 80, verdict: allow}\n"
        "- {from: 192.0.2.99, to: n1, port: 81, verdict: deny}\n"
        "- {from: 192.0.2.99, to: n1, port: 2222, verdict: allow}\n"
        "- {from: 192.0.2.99, to: n1, port: 22, verdict: deny}\n"  # failsafe no more
        "- {from: shop/web, to: n1, port: 80, verdict: deny}\n"  # workloads to their host
        "- {from: shop/web, to: 10.0.0.53, port: 99, proto: udp, verdict: deny}\n"
        "- {from: shop/web, to: 10.0.0.53, port: 98, proto: udp, verdict: allow}\n"
        "- {from: shop/api, to: shop/web, port: 80, verdict: deny}\n"  # what the broken one selects
    )
    status, told = main(["policy", "test", str(path), "--config", config]), capsys.readouterr()
    assert (status, told.out) == (0, "8 expectations, 0 failed\n")
    assert "10.0.0.0/40" in told.err


TUNNELS = """\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.65.0.0/16, vxlanMode: MODE}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n1}
spec: {bgp: {ipv4Address: 192.0.2.1/24, ipv4IPIPTunnelAddr: 10.65.1.9}, ipv4VXLANTunnelAddr: 10.65.1.8}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n2}
spec: {bgp: {ipv4Address: 192.0.2.2/24}, ipv4VXLANTunnelAddr: 10.65.2.8}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n3}
spec: {bgp: {ipv4Address: 198.51.100.3/24}, ipv4VXLANTunnelAddr: 10.65.3.8}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nodes, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress: [{from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: 198.51.100.0/24}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.65.2.8/32}}]}]}
"""


@pytest.mark.parametrize(
    ("mode", "from_n1", "from_n3"),
    [
        ("vxlanMode: Always", "deny", "deny"),
        ("vxlanMode: CrossSubnet", "allow", "deny"),
        ("vxlanMode: Never", "allow", "allow"),
        ("ipipMode: Always", "deny", "allow"),
        ("ipipMode: CrossSubnet", "allow", "allow"),
    ],
)
def test_nodes_send_into_tunnels_from_their_addresses_there(
    mode: str, from_n1: str, from_n3: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """n3 has none of IPIP; a node that is named by an address sends from it."""
    (tmp_path / "resources" / "tunnels.yaml").write_text(TUNNELS.replace("vxlanMode: MODE", mode))
    path = tmp_path / "expectations.yaml"
    path.write_text(
        f"- {{from: n1, to: shop/api, port: 80, verdict: {from_n1}}}\n"
        f"- {{from: n3, to: shop/api, port: 80, verdict: {from_n3}}}\n"
        "- {from: n2, to: shop/api, port: 80, verdict: allow}\n"
        "- {from: 192.0.2.1, to: shop/api, port: 80, verdict: allow}\n"
        "- {from: 10.65.1.8, to: shop/api, port: 80, verdict: deny}\n"
        "- {from: shop/web, to: 10.65.1.8, port: 80, verdict: allow}\n"
        "- {from: shop/web, to: 10.65.1.9, port: 80, verdict: allow}\n"
        "- {from: shop/web, to: 10.65.2.8, port: 80, verdict: allow}\n"
        "- {from: shop/web, to: 10.65.3.8, port: 80, verdict: deny}\n"
    )
    assert main(["policy", "test", str(path), "--config", config]) == 0, capsys.readouterr()


AT_UPLINKS = """
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: NODE, labels: {host: NODE}}
spec: {node: NODE, interfaceName: eth0, expectedIPs: [ADDRESS], profiles: [projectcalico-default-allow]}
---
"""
NO_UDP = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: no-udp}
spec:
  selector: has(host)
  KIND
  types: [Ingress, Egress]
  ingress: [{action: Deny, protocol: UDP}, {action: Allow}]
  egress: [{action: Deny, protocol: UDP}, {action: Allow}]
"""
OPEN = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}
"""


@pytest.mark.parametrize("kind", ["applyOnForward: true", "doNotTrack: true, applyOnForward: true", ""])
@pytest.mark.parametrize("mode", ["vxlanMode: Always", "vxlanMode: Never"])
def test_what_goes_into_a_tunnel_passes_no_policy_of_the_interface_below(
    mode: str, kind: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tunnels = TUNNELS.replace("vxlanMode: MODE", mode).split("---\napiVersion: networking")[0]
    ends = "".join(
        AT_UPLINKS.replace("NODE", node).replace("ADDRESS", address)
        for node, address in (("n1", "192.0.2.1"), ("n2", "192.0.2.2"))
    )
    policy = NO_UDP.replace("KIND", kind.replace(", ", "\n  "))
    (tmp_path / "resources" / "tunnels.yaml").write_text(f"{tunnels}---\n{ends}{policy}---\n{OPEN}")
    pods = "allow" if "Always" in mode or not kind else "deny"
    node = "allow" if "Always" in mode else "deny"
    path = tmp_path / "expectations.yaml"
    path.write_text(
        f"- {{from: shop/web, to: shop/api, port: 53, proto: udp, verdict: {pods}}}\n"
        f"- {{from: n1, to: shop/api, port: 80, proto: udp, verdict: {node}}}\n"
        "- {from: shop/web, to: shop/api, port: 53, verdict: allow}\n"
        "- {from: n1, to: n2, port: 80, proto: udp, verdict: deny}\n"
    )
    assert main(["policy", "test", str(path), "--config", config]) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("rule", "from_pod"),
    [
        ("{action: Deny, source: {nets: [192.0.2.1/32]}}", "deny"),
        ("{action: Deny, source: {nets: [10.65.0.0/16]}}", "allow"),
        ("{action: Deny, source: {selector: app == 'web'}}", "allow"),
        ("{action: Deny, source: {notSelector: has(host)}}", "allow"),
    ],
)
def test_what_leaves_a_pool_arrives_at_another_node_with_the_address_of_its_own(
    rule: str, from_pod: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    nodes = TUNNELS.replace("vxlanMode: MODE", "natOutgoing: true").split("---\napiVersion: networking")[0]
    ends = "".join(
        AT_UPLINKS.replace("NODE", node).replace("ADDRESS", address)
        for node, address in (("n1", "192.0.2.1"), ("n2", "192.0.2.2"))
    )
    policy = f"""
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: into-n2}}
spec: {{selector: host == 'n2', types: [Ingress], ingress: [{rule}, {{action: Allow}}]}}
"""
    (tmp_path / "resources" / "nodes.yaml").write_text(f"{nodes}---\n{ends}{policy}---\n{OPEN}")
    path = tmp_path / "expectations.yaml"
    path.write_text(
        f"- {{from: shop/web, to: n2, port: 80, verdict: {from_pod}}}\n"
        f"- {{from: n1, to: n2, port: 80, verdict: {from_pod}}}\n"
        "- {from: shop/web, to: shop/api, port: 80, verdict: allow}\n"
        "- {from: shop/web, to: n1, port: 80, verdict: allow}\n"
    )
    assert main(["policy", "test", str(path), "--config", config]) == 0, capsys.readouterr()


def test_what_has_no_ports_and_who_is_everybody(config: str, capsys: pytest.CaptureFixture[str]):
    ask = ["policy", "explain", "--from", "shop/web", "--config", config]
    assert main([*ask, "--to", "shop/api", "--proto", "47"]) == 0
    assert "shop/api (10.65.2.2) protocol 47: deny, by end of default" in capsys.readouterr().out
    for wrong, status, said in (
        (["--to", "shop/api", "--proto", "47", "--port", "80"], 2, "protocol 47 has no ports"),
        (["--to", "127.0.0.1", "--port", "80"], 1, "127.0.0.1: is everybody's own"),
        (["--to", "::1", "--port", "80"], 1, "::1: is everybody's own"),
    ):
        assert main([*ask, *wrong]) == status
        assert said in capsys.readouterr().err
