"""routed.yaml: what it may say, and how each mistake reads."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from routed import config
from routed.config import (
    Config,
    KernelConfig,
    LogConfig,
    MetricsConfig,
    make_folders,
    parse_config,
    reload,
)
from routed.core.effects import Level
from routed.errors import ConfigError
from routed.plan.types import PodCidrs

DATASTORE = "datastore: {type: file, path: /r}\n"


def parse(text: str) -> Config:
    return parse_config(text.encode(), "/etc/routed/routed.yaml")


def test_defaults() -> None:
    assert parse(DATASTORE) == Config(node_name=socket.gethostname().lower(), datastore_path="/r")


def test_everything() -> None:
    assert parse(
        """
nodeName: node-1
routerId: 10.0.0.1
datastore:
  type: file
  path: resources
runDir: /tmp/run
stateDir: ../state
kernel: {programRoutes: false, table: 100, routeProtocol: 17, metric: 32}
log: {level: debug, format: json}
metrics: {listen: [0.0.0.0:9971, "[::1]:80"], peers: 7}
onStop: shutdown
"""
    ) == Config(
        node_name="node-1",
        router_id=0x0A000001,
        datastore_path="/etc/routed/resources",
        run_dir="/tmp/run",
        state_dir="/etc/state",
        kernel=KernelConfig(program_routes=False, table=100, route_protocol=17, metric=32),
        log=LogConfig(Level.DEBUG, "json"),
        metrics=MetricsConfig((("0.0.0.0", 9971), ("::1", 80)), 7),
        on_stop="shutdown",
    )


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("127.0.0.1:9971", (("127.0.0.1", 9971),)),
        ("'[fd00::1]:1'", (("fd00::1", 1),)),
        ("'[0:0::1]:1'", (("::1", 1),)),
        ("off", ()),
        ("[]", ()),
        ("[10.0.0.1:1, 10.0.0.1:1]", (("10.0.0.1", 1),)),
    ],
)
def test_where_metrics_are_served(text: str, addresses: tuple[tuple[str, int], ...]) -> None:
    assert parse(f"{DATASTORE}metrics: {{listen: {text}}}").metrics.listen == addresses


@pytest.mark.parametrize(
    "text",
    ["9971", "':9971'", "localhost:9971", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "'::1:9971'", "'[::1]'", "10.0.0.1:x",
     "on", "'[fe80::1%eth0]:1'", "10.0.0.256:1", "'10.0.0.1:1 '"],
)  # fmt: skip
@pytest.mark.parametrize("listed", [False, True])
def test_addresses_that_are_none(text: str, listed: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{DATASTORE}metrics:\n  listen: {f'[{text}]' if listed else text}")
    key = "metrics.listen[0]" if listed else "metrics.listen"
    assert caught.value.path.endswith(":3")
    assert f"{key}: must be an IP address and a port such as 127.0.0.1:9971" in str(caught.value)


def test_off_is_no_address_beside_others_and_brackets_take_quotes() -> None:
    with pytest.raises(ConfigError, match=r"metrics\.listen\[1\]: must be an IP address"):
        parse(f"{DATASTORE}metrics: {{listen: [10.0.0.1:1, off]}}")
    with pytest.raises(ConfigError, match="put an IPv6 address with its port in quotes"):
        parse(f"{DATASTORE}metrics: {{listen: [[10]]}}")
    with pytest.raises(ConfigError, match="must be a number from 0 to 10000"):
        parse(f"{DATASTORE}metrics: {{peers: many}}")


@pytest.mark.parametrize(("table", "number"), [("main", 254), ("default", 253), ("1", 1), ("4294967295", 0xFFFFFFFF)])
def test_tables(table: str, number: int) -> None:
    assert parse(f"{DATASTORE}kernel: {{table: {table}}}").kernel.table == number


def test_table_names_are_those_of_iproute2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rt_tables").write_text("# comment\n100 blue # ours\n\nnot a line\n")
    (tmp_path / "rt_tables.d").mkdir()
    (tmp_path / "rt_tables.d" / "red.conf").write_text("101\tred\n")
    monkeypatch.setattr(config, "TABLE_NAMES", (str(tmp_path / "rt_tables"), "/nowhere"))
    assert parse(f"{DATASTORE}kernel: {{table: blue}}").kernel.table == 100
    assert parse(f"{DATASTORE}kernel: {{table: red}}").kernel.table == 101


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", "", "datastore.path: is required: the folder of resource files"),
        ("datastore: {type: file}", ":1", "datastore.path: is required: the folder of resource files"),
        ("datastore: /r", ":1", "datastore: must be a mapping with the keys type, path, endpoints"),
        ("datastore: {type: etcd, path: /r}", ":1", "datastore.path: is a key of type file, and the type is etcd"),
        ("datastore: {type: zk, path: /r}", ":1", "datastore.type: must be file or etcd, not 'zk'"),
        ("datastore: {type: etcd}", ":1", "datastore.endpoints: is required"),
        ("datastore:\n  type: etcd\n  endpoints: [etcd]", ":3", "datastore.endpoints[0]: must be http://HOST:PORT"),
        ("datastore: {type: etcd, endpoints: [http://a:1], caFile: x}", ":1", "datastore.caFile: is for https"),
        ("datastore: {type: etcd, endpoints: [https://a:1], certFile: x}", ":1", "datastore.keyFile: is required"),
        ("datastore: {type: etcd, endpoints: [http://a:1], username: x}", ":1", "datastore.passwordFile: is required"),
        (
            "datastore: {type: etcd, endpoints: [http://a:1], massDelete: {percent: 200}}",
            ":1",
            "datastore.massDelete.percent: must be at most 100",
        ),
        ("datastore: {path: /r, endpoints: [http://a:1]}", ":1", "datastore.endpoints: is a key of type etcd"),
        ("datastore: {path: [/r]}", ":1", "datastore.path: must be one value, not a list or a mapping"),
        (DATASTORE + "nodename: a", ":2", "nodename: unknown key; did you mean `nodeName`?"),
        (DATASTORE + "kernel:\n  metric: 1\n  tabel: 5", ":4", "kernel.tabel: unknown key; did you mean `table`?"),
        (DATASTORE + "log: {colour: 1}", ":2", "log.colour: unknown key; known keys are level and format"),
        (DATASTORE + "nodeName: a\nnodeName: b", ":3", "nodeName: is given twice"),
        (DATASTORE + "nodeName: 17", ":2", "nodeName: must be text, not 17; put it in quotes"),
        (DATASTORE + "nodeName: a b", ":2", "nodeName: must be a node's name, not 'a b'"),
        (DATASTORE + "routerId: 0.0.0.0", ":2", "router id 0.0.0.0 is not allowed (RFC 6286)"),
        (DATASTORE + "routerId: ten", ":2", "routerId: must be a router id such as 10.0.0.1"),
        (DATASTORE + "runDir:", ":2", "runDir: must be text, not nothing; put it in quotes"),
        (DATASTORE + 'stateDir: ""', ":2", "stateDir: must be the path of a folder"),
        (
            DATASTORE + "cni: {enabled: true}\nkernel: {programRoutes: false}",
            ":3",
            "kernel.programRoutes: cannot be false with cni.enabled",
        ),
        (
            DATASTORE + "kernel:\n  table: 100\ncni: {enabled: true}",
            ":3",
            "kernel.table: must be main with cni.enabled",
        ),
        (
            DATASTORE + "kernel: {programRoutes: maybe}",
            ":2",
            "kernel.programRoutes: must be true or false, not 'maybe'",
        ),
        (DATASTORE + "kernel: {table: 0}", ":2", "kernel.table: must be a number from 1 to 4294967295, not 0"),
        (DATASTORE + "kernel: {table: local}", ":2", "kernel.table: "),
        (DATASTORE + "kernel: {table: blau}", ":2", "kernel.table: 'blau' is no routing table's name"),
        (DATASTORE + "kernel: {table: true}", ":2", "kernel.table: must be a number from 1 to 4294967295, not true"),
        (DATASTORE + "kernel: {routeProtocol: 4}", ":2", "kernel.routeProtocol: 4 is a route protocol of the kernel"),
        (
            DATASTORE + "kernel: {routeProtocol: 256}",
            ":2",
            "kernel.routeProtocol: must be a number from 5 to 255, not 256",
        ),
        (DATASTORE + "kernel: {metric: -1}", ":2", "kernel.metric: must be a number from 0 to 2147483647, not -1"),
        (DATASTORE + "log: {level: loud}", ":2", "log.level: must be debug or info or warning or error, not 'loud'"),
        (DATASTORE + "log: {format: xml}", ":2", "log.format: must be text or json, not 'xml'"),
        (DATASTORE + "node: {ipv4: nearest}", ":2", "node.ipv4: 'nearest' is no way to find an address; known are"),
        (DATASTORE + "node: {ipv4: can-reach=host}", ":2", "node.ipv4: 'can-reach=host': 'host' is not an address"),
        (DATASTORE + "node: {ipv4: 10.0.0.1/33}", ":2", "node.ipv4: must be an IPv4 address with its subnet's length"),
        (DATASTORE + "node: {ipv6: 10.0.0.1/24}", ":2", "node.ipv6: must be an IPv6 address with its subnet's length"),
        (DATASTORE + "node: {asNumber: 0}", ":2", "node.asNumber: must not be AS 0"),
        (DATASTORE + "node: {routeReflectorClusterID: 1}", ":2", "node.routeReflectorClusterID: must be text"),
        (DATASTORE + "node: {labels: [a]}", ":2", "node.labels: must be a mapping"),
        (DATASTORE + "node:\n  labels:\n    rack: [a]", ":4", "node.labels.rack: must be one value"),
        (DATASTORE + "clusterDefaults: {ipv4Pool: 10.65.0.1/16}", ":2", "clusterDefaults.ipv4Pool: "),
        (
            DATASTORE + "clusterDefaults: {ipv6Pool: 10.65.0.0/16}",
            ":2",
            "clusterDefaults.ipv6Pool: must be an IPv6 prefix",
        ),
        (
            DATASTORE + "clusterDefaults: {ipv4Pool: 10.65.0.0/28}",
            ":2",
            "clusterDefaults.ipv4BlockSize: must be at least the pool's length: 10.65.0.0/28 is smaller than a /26",
        ),
        (
            DATASTORE + "clusterDefaults: {ipv6Pool: 'fd00::/64', encapsulation: IPIP}",
            ":2",
            "clusterDefaults.encapsulation: cannot be IPIP with an ipv6Pool: IPIP carries IPv4 only",
        ),
        (DATASTORE + "onStop: never", ":2", "onStop: must be restart or shutdown, not 'never'"),
        ("- a\n- b", ":1", "must be a mapping with the keys nodeName, routerId"),
        ("nodeName: [", ":1", "is not YAML: "),
        ("a: 1\n---\nb: 2", ":2", "is not YAML: "),
        ("\x1b[31m", "", "is not YAML"),
        (DATASTORE + '"\\e[31m": 1', ":2", "\\x1b[31m: unknown key"),
        ("[" * 1000, "", "is not"),
    ],
)
def test_mistakes(text: str, place: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.path == f"/etc/routed/routed.yaml{place}" or text.startswith("[" * 1000)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_octets_that_are_no_text() -> None:
    with pytest.raises(ConfigError, match="is not YAML"):
        parse_config(b"nodeName: \xff\x00", "routed.yaml")


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such configuration file; name one with --config"):
        config.load_config(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="cannot read the configuration: Is a directory"):
        config.load_config(str(tmp_path))


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    made = Config("a", "/r", run_dir=str(tmp_path / "a/b/run"), state_dir=str(tmp_path / "c/d/state"))
    make_folders(made)
    make_folders(made)
    assert os.path.isdir(made.run_dir) and os.path.isdir(made.state_dir)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot create the folder stateDir names: Not a directory"):
        make_folders(replace(made, state_dir=str(tmp_path / "file" / "state")))


def test_reload_takes_what_can_change_and_names_the_rest() -> None:
    old = Config("a", "/r", kernel=KernelConfig(table=100))
    new = Config("b", "/r", kernel=KernelConfig(table=101), log=LogConfig(Level.DEBUG, "json"), on_stop="shutdown")
    new = replace(new, secrets_dir="/s", router_id=1, router_id_from_name=True)
    changed = replace(old, log=new.log, on_stop="shutdown", secrets_dir="/s")
    assert reload(old, new) == (changed, ("nodeName", "routerId", "kernel"))
    assert reload(old, old) == (old, ())


def test_what_decides_about_routes() -> None:
    text = b"nodeName: a\ndatastore: {path: /r}\ncalicoVersion: v3.32\ninterfacePrefix: cali, tap\n"
    config = parse_config(text + b"ipam: {usePodCIDR: true}\n", "/etc/routed.yaml")
    assert (config.calico_version, config.interface_prefixes, config.use_pod_cidr) == ("v3.32", ("cali", "tap"), True)
    assert config.leak_grace_period is None
    for said, seconds in ((b"15m", 900), (b"0", 0), (b"1m30s", 90), (b"'0'", 0)):
        assert (
            parse_config(b"ipam: {leakGracePeriod: %b}\n" % said + text, "/etc/routed.yaml").leak_grace_period
            == seconds
        )
    for wrong in (
        b"ipam: {leakGracePeriod: 15}",
        b"ipam: {leakGracePeriod: -1s}",
        b"ipam: {leakGracePeriod: false}",
        b"calicoVersion: v3.30",
        b"interfacePrefix: 'a b'",
        b"interfacePrefix: ''",
        b"ipam: {usePodCIDR: 1}",
    ):
        with pytest.raises(ConfigError, match=r"yaml:3: "):
            parse_config(b"nodeName: a\ndatastore: {path: /r}\n" + wrong, "/etc/routed.yaml")


def test_on_etcd_pod_cidrs_count_only_where_it_is_said() -> None:
    folder = b"nodeName: a\ndatastore: {path: /r}\n"
    etcd = b"nodeName: a\ndatastore: {type: etcd, endpoints: ['http://127.0.0.1:2379']}\n"
    for text, said, expected in (
        (folder, b"", PodCidrs.WITHOUT_AFFINITY),
        (etcd, b"", PodCidrs.NEVER),
        (etcd, b"ipam: {usePodCIDR: true}\n", PodCidrs.ALWAYS),
        (etcd, b"ipam: {usePodCIDR: false}\n", PodCidrs.NEVER),
    ):
        assert config.pod_cidrs(parse_config(text + said, "/etc/routed.yaml")) is expected


def test_everything_that_is_wrong_is_found_at_once() -> None:
    text = "nodeName: 5\nkernl: 1\nkernel:\n  table: []\n  metric: -1\nlog: loud\n"
    made, found = config.check_config(text.encode(), "r.yaml")
    assert [str(error) for error in found] == [
        "r.yaml:1: nodeName: must be text, not 5; put it in quotes",
        "r.yaml:2: kernl: unknown key; did you mean `kernel`?",
        "r.yaml:4: kernel.table: must be one value, not a list or a mapping",
        "r.yaml:5: kernel.metric: must be a number from 0 to 2147483647, not -1",
        "r.yaml:6: log: must be a mapping with the keys level and format",
        "r.yaml: datastore.path: is required: the folder of resource files",
    ]
    assert made.kernel == config.KernelConfig()


@pytest.mark.parametrize(
    ("text", "protocols"),
    [("[bird]", (12,)), ("bird", (12,)), ("[bird, 80]", (12, 80)), ("[]", ())],
)
def test_daemons_whose_routes_are_taken_over(tmp_path: Path, text: str, protocols: tuple[int, ...]) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "c.yaml").write_text(f"nodeName: n\ndatastore: {{path: r}}\nkernel: {{takeOver: {text}}}\n")
    assert config.load_config(str(tmp_path / "c.yaml")).kernel.take_over == protocols


@pytest.mark.parametrize("text", ["[static]", "[bord]", "[2]", "[[bird]]", "{a: b}"])
def test_only_routing_daemons_give_routes(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(f"nodeName: n\ndatastore: {{path: .}}\nkernel: {{takeOver: {text}}}\n")
    with pytest.raises(ConfigError, match=r"kernel\.takeOver"):
        config.load_config(str(tmp_path / "c.yaml"))


def test_calicos_environment_says_what_the_file_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DATASTORE_TYPE": "etcdv3",
        "ETCD_ENDPOINTS": "https://a:2379, https://b:2379",
        "ETCD_CA_CERT_FILE": "/ca",
        "ETCD_CERT_FILE": "/cert",
        "ETCD_KEY_FILE": "/key",
        "ETCD_USERNAME": "user",
        "ETCD_PASSWORD": "hidden",
    }.items():
        monkeypatch.setenv(name, value)
    etcd = parse("datastore: {caFile: mine, massDelete: {timeoutSeconds: never, percent: 50}}").etcd
    assert etcd is not None and etcd.client.endpoints == ("https://a:2379", "https://b:2379")
    assert (etcd.client.ca_file, etcd.client.cert_file, etcd.client.key_file) == ("/etc/routed/mine", "/cert", "/key")
    assert (etcd.client.username, etcd.client.password) == ("user", "hidden")
    assert "hidden" not in repr(etcd)
    assert (etcd.mass_delete.timeout, etcd.mass_delete.share) == (None, 0.5)
    assert parse("datastore: {type: file, path: /r}").etcd is None


def test_endpoints_in_the_environment_mean_etcd_where_no_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for Calico, whose usual datastore is etcd."""
    monkeypatch.setenv("ETCD_ENDPOINTS", "http://a:2379")
    etcd = parse("nodeName: n").etcd
    assert etcd is not None and etcd.client.endpoints == ("http://a:2379",)
    assert parse("datastore: {path: /r}").etcd is None and parse("datastore: {type: file, path: /r}").etcd is None


@pytest.mark.parametrize("name", ["ETCD_DISCOVERY_SRV", "ETCD_AUTHORITY", "ETCD_SCHEME", "ETCD_KEY"])
def test_names_of_calicos_environment_that_are_not_heeded_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "example.org")
    assert parse("datastore: {path: /r}").etcd is None
    with pytest.raises(ConfigError, match=f"{name}.* not supported; use ETCD_"):
        parse("datastore: {type: etcd, endpoints: ['http://a:2379']}")
    monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="or ETCD_ENDPOINTS"):
        parse("datastore: {type: etcd}")


def test_how_a_node_is_registered() -> None:
    given = parse(
        f"""{DATASTORE}nodeName: n1
cni: {{enabled: true}}
kubernetes: {{kubeconfig: k}}
node: {{register: true, ipv4: 'interface=eth.*,bond', ipv6: fd00::1/64, asNumber: "1.10", labels: {{rack: 7, rr: true}},
        routeReflectorClusterID: 244.0.0.1}}
clusterDefaults: {{asNumber: 64999, ipv4Pool: none, ipv6Pool: 'fd65::/64', encapsulation: VXLAN, ipv6BlockSize: 120}}
"""
    )
    wanted = config.registration(given)
    assert given.node.register and (wanted.name, wanted.as_number, wanted.orchestrator) == ("n1", 65546, "k8s")
    assert wanted.cluster_id == 0xF4000001 and wanted.labels == {"rack": "7", "rr": "true"}
    method, address = wanted.ways.values()
    assert getattr(method, "text", "") == "interface=eth.*,bond" and getattr(address, "subnet", b"")[:1] == bytes([64])
    assert [str(pool) for pool in wanted.cluster.pools.values()] == ["fd65::/64"]
    assert (wanted.cluster.as_number, wanted.cluster.encapsulation, wanted.cluster.nat_outgoing) == (
        64999,
        "VXLAN",
        True,
    )
    usual = config.registration(parse(DATASTORE))
    assert [str(pool) for pool in usual.cluster.pools.values()] == ["192.168.0.0/16"] and not usual.cluster.nat_outgoing
    assert [getattr(way, "text", way) for way in usual.ways.values()] == ["first-found", None]
