"""routed.yaml: what the daemon is told about itself. Everything about the network is in the datastore.

    nodeName: node-1              # default: the host's name
    routerId: 10.0.0.1            # default: the Node's IPv4 address
    datastore: {type: file, path: /etc/routed/resources}      # or type: etcd; `datastore.etcd_settings` has its keys
    runDir: /run/routed           # the control socket
    stateDir: /var/lib/routed
    secrets: {dir: /etc/routed/secrets}    # passwords of sessions; default: none
    kernel: {programRoutes: true, table: main, routeProtocol: 120, metric: 0}
    log: {level: info, format: text}
    metrics: {listen: "127.0.0.1:9971", peers: 100}   # or a list of addresses, or off
    cni: {enabled: false, socket: /run/routed/cni.sock, proxyARP: false}   # whether this node's pods are routed's
    policy: {logGroup: 0}         # NFLOG group of denied packets; default: they are not logged
    ipam: {leakGracePeriod: 15m}  # lost addresses are taken back after it; 0: never
    conntrack: {max: 65536, buckets: 8192, timeouts: {udp_timeout: 30}}    # default: as the kernel has them
    kubernetes: {kubeconfig: /etc/routed/kubeconfig}       # services and pods' labels; default: none
    node: {register: false, ipv4: first-found, ipv6: none}   # how this node's Node is written: `routed node init`
    clusterDefaults: {asNumber: 64512, ipv4Pool: 192.168.0.0/16}    # what a cluster gets that has nothing of it
    onStop: restart               # restart: peers keep our routes (RFC 4724); shutdown: sessions end with Cease/2

Invariants: an unknown key, a key given twice and a wrong type are refused with the file, the line and the key's full
path; a `Config` is complete and valid. Relative folders are relative to the file's own.

Long for one idea: a file read with the place of each value, and a reader for each key, in one list.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import yaml

from routed.cni.protocol import DEFAULT_SOCKET
from routed.control.protocol import DEFAULT_RUN_DIR, SOCKET_NAME
from routed.core.effects import Level
from routed.dataplane.conntrack import AS_IT_IS, MAX_CHAIN, MAX_TIMEOUT, TIMEOUTS, ConntrackSettings
from routed.datastore.etcd_settings import ETCD_KEYS, EtcdConfig, EtcdDatastore, etcd_settings
from routed.errors import ConfigError
from routed.model.fields import as_as_number, as_cidr, as_node_address, go_duration
from routed.model.operator import ENCAPSULATIONS
from routed.model.resources import Cidr
from routed.model.settings import MAX_LEAK_GRACE
from routed.net.addresses import parse_router_id
from routed.net.families import Family
from routed.net.prefixes import parse_prefix
from routed.observe.logs import FORMATS, harmless
from routed.plan.autodetect import FIRST_FOUND, parse_method
from routed.plan.registration import BLOCK_SIZES, ClusterDefaults, Registration, Way
from routed.plan.types import CalicoVersion, PodCidrs
from routed.rib.nexthops import PROTOCOL_NAMES
from routed.values import dataclass

DEFAULT_PATH = "/etc/routed/routed.yaml"
DEFAULT_STATE_DIR = "/var/lib/routed"
DEFAULT_TABLE = 254
DEFAULT_PROTOCOL = 120
DEFAULT_METRIC = 0
DEFAULT_LISTEN = ("127.0.0.1", 9971)
DEFAULT_NAMED_PEERS = 100
DEFAULT_NAMED_POLICIES = 100

FIRST = parse_method(FIRST_FOUND)
CLUSTER_DEFAULTS = ClusterDefaults(pools={Family.IPV4_UNICAST: Cidr(*parse_prefix("192.168.0.0/16"))})

#: `routerId: hash`, among router ids while the file is read.
HASHED = -1

#: Octets of the largest file that is read.
MAX_SIZE = 1 << 20

#: Route protocol numbers that mean "not a routing daemon": unspec, redirect, kernel, boot, static.
FOREIGN_PROTOCOLS = range(5)

TABLE_NAMES = ("/etc/iproute2/rt_tables", "/usr/share/iproute2/rt_tables", "/usr/lib/iproute2/rt_tables")

QUOTES = "put an IPv6 address with its port in quotes: '[::1]:9971'"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KernelConfig:
    program_routes: bool = True
    table: int = DEFAULT_TABLE
    """Number of the routing table."""
    route_protocol: int = DEFAULT_PROTOCOL
    """rtm_protocol of our routes: what tells them from everybody else's."""
    metric: int = DEFAULT_METRIC
    """Route priority of our routes; 0 is the kernel's default (0 for IPv4, 1024 for IPv6)."""
    take_over: tuple[int, ...] = ()
    """rtm_protocol of routes that become ours when the daemon starts."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    level: Level = Level.INFO
    form: str = "text"


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    listen: tuple[tuple[str, int], ...] = (DEFAULT_LISTEN,)
    """IP addresses and ports of the HTTP server; none where it is off."""
    peers: int = DEFAULT_NAMED_PEERS
    """Peers that have a name in labels; the rest are counted together."""
    policies: int = DEFAULT_NAMED_POLICIES
    """The same for policies."""


@dataclass(frozen=True, slots=True)
class CniConfig:
    enabled: bool = False
    """This node's pods are routed's: addresses, interfaces, routes, policy and NAT."""
    socket: str = DEFAULT_SOCKET
    proxy_arp: bool = False
    """Answer ARP and neighbour solicitations on pods' interfaces, for pods that somebody else configures."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What of this node's Node is written by itself."""

    register: bool = False
    """The daemon does it at its start."""
    ipv4: Way = FIRST
    ipv6: Way = None
    as_number: int | None = None
    cluster_id: int | None = None
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """A whole routed.yaml."""

    node_name: str
    datastore_path: str
    """The folder of the file datastore; empty where it is another."""
    router_id: int | None = None
    run_dir: str = DEFAULT_RUN_DIR
    state_dir: str = DEFAULT_STATE_DIR
    kernel: KernelConfig = KernelConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    on_stop: str = "restart"
    secrets_dir: str = ""
    """Holds `SECRET/KEY` files; empty: there are no secrets."""
    router_id_from_name: bool = False
    """`routerId: hash`: also where the Node has an IPv4 address."""
    calico_version: CalicoVersion | None = None
    """None: what the datastore says."""
    use_pod_cidr: bool | None = None
    """ipam.usePodCIDR; None: where nothing else says what the node's blocks are."""
    leak_grace_period: float | None = None
    """Seconds lost addresses are left before they are taken back; 0: for ever; None: what the datastore says."""
    interface_prefixes: tuple[str, ...] = ()
    """Empty: what the datastore says."""
    cni: CniConfig = CniConfig()
    policy_log_group: int | None = None
    """NFLOG group of denied packets; None: they are not logged."""
    conntrack: ConntrackSettings = AS_IT_IS
    kubeconfig: str = ""
    """Empty: the Kubernetes API is not asked."""
    etcd: EtcdDatastore | None = None
    """None: the datastore is a folder."""
    node: NodeConfig = NodeConfig()
    cluster_defaults: ClusterDefaults = CLUSTER_DEFAULTS

    @property
    def socket_path(self) -> str:
        return os.path.join(self.run_dir, SOCKET_NAME)


#: The name of each field in routed.yaml, and whether SIGHUP may change it.
KEYS = {
    "node_name": ("nodeName", False),
    "datastore_path": ("datastore.path", False),
    "etcd": ("datastore", False),
    "router_id": ("routerId", False),
    "run_dir": ("runDir", False),
    "state_dir": ("stateDir", False),
    "kernel": ("kernel", False),
    "log": ("log", True),
    "metrics": ("metrics", True),
    "on_stop": ("onStop", True),
    "secrets_dir": ("secrets.dir", True),
    "router_id_from_name": ("routerId", False),
    "calico_version": ("calicoVersion", False),
    "use_pod_cidr": ("ipam.usePodCIDR", False),
    "leak_grace_period": ("ipam.leakGracePeriod", False),
    "interface_prefixes": ("interfacePrefix", False),
    "cni": ("cni", False),
    "policy_log_group": ("policy.logGroup", False),
    "conntrack": ("conntrack", False),
    "kubeconfig": ("kubernetes.kubeconfig", False),
    "node": ("node", False),
    "cluster_defaults": ("clusterDefaults", False),
}


def pod_cidrs(config: Config) -> PodCidrs:
    """When status.podCIDRs of the Node count: as said, else where the datastore's files name no block of the node.

    On etcd, where Calico's allocator keeps the blocks, they don't unless it is said.
    """
    if config.use_pod_cidr is None:
        return PodCidrs.WITHOUT_AFFINITY if config.etcd is None else PodCidrs.NEVER
    return PodCidrs.ALWAYS if config.use_pod_cidr else PodCidrs.NEVER


def registration(config: Config) -> Registration:
    """What is to be written about this node, and for a cluster that has nothing."""
    return Registration(
        name=config.node_name,
        ways={Family.IPV4_UNICAST: config.node.ipv4, Family.IPV6_UNICAST: config.node.ipv6},
        as_number=config.node.as_number,
        cluster_id=config.node.cluster_id,
        labels=dict(config.node.labels),
        orchestrator="k8s" if config.kubeconfig else "",
        calico_version=config.calico_version.value if config.calico_version is not None else "",
        cluster=config.cluster_defaults,
    )


def reload(old: Config, new: Config) -> tuple[Config, tuple[str, ...]]:
    """The configuration to go on with when the file now says `new`, and the keys whose change needs a restart."""
    refused = []
    values = {}
    for each in fields(Config):
        key, live = KEYS[each.name]
        before, after = getattr(old, each.name), getattr(new, each.name)
        values[each.name] = after if live else before
        if not live and before != after:
            refused.append(key)
    return Config(**values), tuple(dict.fromkeys(refused))


def load_config(path: str) -> Config:
    """Read a routed.yaml. Raises ConfigError: one sentence with the file, the line and the key."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        raise ConfigError(path, "there is no such configuration file; name one with --config") from None
    except OSError as error:
        raise ConfigError(path, f"cannot read the configuration: {error.strerror}") from None
    if len(data) > MAX_SIZE:
        raise ConfigError(path, f"is larger than {MAX_SIZE} octets: this is no routed.yaml")
    return parse_config(data, path)


def parse_config(data: bytes, path: str) -> Config:
    """The configuration in a file's octets; `path` is for errors and relative folders. Raises ConfigError, the first."""
    config, found = check_config(data, path)
    if found:
        raise found[0]
    return config


def check_config(data: bytes, path: str) -> tuple[Config, list[ConfigError]]:
    """As `parse_config`, with everything that is wrong; what is wrong stands at its default.

    Raises ConfigError where the file is no YAML.
    """
    found: list[ConfigError] = []
    try:
        node = yaml.compose(data, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ConfigError(f"{path}{line}", f"is not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(path, "is not YAML text") from None
    except RecursionError:
        raise ConfigError(path, "is not a configuration: it is nested too deeply") from None
    top = _Mapping(
        path,
        "",
        node,
        (
            "nodeName", "routerId", "datastore", "runDir", "stateDir", "secrets", "kernel", "log", "metrics", "onStop",
            "calicoVersion", "ipam", "interfacePrefix", "cni", "policy", "conntrack", "kubernetes", "node",
            "clusterDefaults",
        ),
        found,
    )  # fmt: skip
    base = os.path.dirname(os.path.abspath(path))
    datastore = top.mapping("datastore", ("type", "path", *ETCD_KEYS))
    etcd = _etcd(datastore, base)
    kernel = top.mapping("kernel", ("programRoutes", "table", "routeProtocol", "metric", "takeOver"))
    log = top.mapping("log", ("level", "format"))
    ipam = top.mapping("ipam", ("usePodCIDR", "leakGracePeriod"))
    metrics = top.mapping("metrics", ("listen", "peers", "policies"))
    secrets = top.mapping("secrets", ("dir",))
    secrets_dir = secrets.get("dir", _folder, "")
    cni = top.mapping("cni", ("enabled", "socket", "proxyARP"))
    policy = top.mapping("policy", ("logGroup",))
    conntrack = top.mapping("conntrack", ("max", "buckets", "timeouts"))
    kubeconfig = top.mapping("kubernetes", ("kubeconfig",)).get("kubeconfig", _folder, "")
    node_keys = ("register", "ipv4", "ipv6", "asNumber", "routeReflectorClusterID", "labels")
    node_config = top.mapping("node", node_keys)
    defaults = top.mapping(
        "clusterDefaults",
        ("asNumber", "ipv4Pool", "ipv6Pool", "ipv4BlockSize", "ipv6BlockSize", "encapsulation", "natOutgoing"),
    )
    usual_way: Way = FIRST
    pods_are_ours = cni.get("enabled", _flag, False)
    router_id = top.get("routerId", _router_id, None)
    folder = "" if etcd is not None else datastore.required("path", _folder, "the folder of resource files")
    config = Config(
        node_name=top.get("nodeName", _name, "") or _host_name(path),
        datastore_path=_absolute(base, folder) if folder else "",
        etcd=etcd,
        router_id=None if router_id == HASHED else router_id,
        router_id_from_name=router_id == HASHED,
        secrets_dir=_absolute(base, secrets_dir) if secrets_dir else "",
        run_dir=_absolute(base, top.get("runDir", _folder, DEFAULT_RUN_DIR)),
        state_dir=_absolute(base, top.get("stateDir", _folder, DEFAULT_STATE_DIR)),
        kernel=KernelConfig(
            program_routes=kernel.get("programRoutes", _flag, True),
            table=kernel.get("table", _table, DEFAULT_TABLE),
            route_protocol=kernel.get("routeProtocol", _protocol, DEFAULT_PROTOCOL),
            metric=kernel.get("metric", _number(0, 0x7FFFFFFF), DEFAULT_METRIC),
            take_over=kernel.get_all("takeOver", routing_daemon, ())
            if kernel.is_list("takeOver")
            else kernel.get("takeOver", lambda value: (routing_daemon(value),), ()),
        ),
        log=LogConfig(
            level=Level(log.get("level", _choice(*Level), Level.INFO.value)),
            form=log.get("format", _choice(*FORMATS), "text"),
        ),
        metrics=MetricsConfig(
            listen=tuple(dict.fromkeys(metrics.get_all("listen", _listen_address, _one_address(metrics)))),
            peers=metrics.get("peers", _number(0, 10000), DEFAULT_NAMED_PEERS),
            policies=metrics.get("policies", _number(0, 10000), DEFAULT_NAMED_POLICIES),
        ),
        on_stop=top.get("onStop", _choice("restart", "shutdown"), "restart"),
        calico_version=CalicoVersion(version)
        if (version := top.get("calicoVersion", _choice(*CalicoVersion), ""))
        else None,
        use_pod_cidr=ipam.get("usePodCIDR", _flag, None),
        leak_grace_period=ipam.get("leakGracePeriod", _grace_period, None),
        interface_prefixes=top.get("interfacePrefix", _interface_prefixes, ()),
        cni=CniConfig(
            enabled=pods_are_ours,
            socket=_absolute(base, cni.get("socket", _folder, DEFAULT_SOCKET)),
            proxy_arp=cni.get("proxyARP", _flag, False),
        ),
        policy_log_group=policy.get("logGroup", _number(0, 65535), None),
        conntrack=_conntrack(conntrack),
        kubeconfig=_absolute(base, kubeconfig) if kubeconfig else "",
        node=NodeConfig(
            register=node_config.get("register", _flag, False),
            ipv4=node_config.get("ipv4", _way(Family.IPV4_UNICAST), usual_way),
            ipv6=node_config.get("ipv6", _way(Family.IPV6_UNICAST), None),
            as_number=node_config.get("asNumber", _as_number, None),
            cluster_id=node_config.get("routeReflectorClusterID", _cluster_id, None),
            labels=tuple(sorted(node_config.get_any("labels", _label).items())),
        ),
        cluster_defaults=_cluster_defaults(defaults, nat_outgoing=pods_are_ours),
    )
    if pods_are_ours and not config.kernel.program_routes:
        kernel.fail(
            "programRoutes", "cannot be false with cni.enabled: nobody else makes the routes to this node's pods"
        )
    if pods_are_ours and config.kernel.table != DEFAULT_TABLE:
        kernel.fail(
            "table", "must be main with cni.enabled: that is where packets to this node's pods look for their routes"
        )
    return config, sorted(found, key=_line)


def _line(error: ConfigError) -> int:
    line = error.path.rpartition(":")[2]
    return int(line) if line.isdigit() else sys.maxsize


def _cluster_defaults(given: _Mapping, *, nat_outgoing: bool) -> ClusterDefaults:
    usual = CLUSTER_DEFAULTS
    usual_pool: Cidr | None = usual.pools[Family.IPV4_UNICAST]
    ipv4 = given.get("ipv4Pool", _pool(Family.IPV4_UNICAST), usual_pool)
    ipv6 = given.get("ipv6Pool", _pool(Family.IPV6_UNICAST), None)
    encapsulation = given.get("encapsulation", _choice(*ENCAPSULATIONS), usual.encapsulation)
    if ipv6 is not None and encapsulation.startswith("IPIP"):
        given.fail("encapsulation", f"cannot be {encapsulation} with an ipv6Pool: IPIP carries IPv4 only")
    sizes = {
        Family.IPV4_UNICAST: given.get("ipv4BlockSize", _number(20, 32), BLOCK_SIZES[Family.IPV4_UNICAST]),
        Family.IPV6_UNICAST: given.get("ipv6BlockSize", _number(116, 128), BLOCK_SIZES[Family.IPV6_UNICAST]),
    }
    for name, pool in (("ipv4BlockSize", ipv4), ("ipv6BlockSize", ipv6)):
        if pool is not None and sizes[pool.family] < pool.prefix[0]:
            given.fail(name, f"must be at least the pool's length: {pool} is smaller than a /{sizes[pool.family]}")
    return ClusterDefaults(
        as_number=given.get("asNumber", _as_number, usual.as_number),
        pools={pool.family: pool for pool in (ipv4, ipv6) if pool is not None},
        block_sizes=sizes,
        encapsulation=encapsulation,
        nat_outgoing=given.get("natOutgoing", _flag, nat_outgoing),
    )


def _grace_period(value: object) -> float:
    """A duration as Calico writes it; 0 is one."""
    seconds = 0.0 if value == 0 and value is not False else go_duration(value) if isinstance(value, str) else None
    if seconds is None or not 0 <= seconds <= MAX_LEAK_GRACE:
        raise ValueError(f'must be a duration such as "15m", at most a year, or 0 for never, not {_shown(value)}')
    return seconds


def _conntrack(given: _Mapping) -> ConntrackSettings:
    maximum = given.get("max", _number(1024, 1 << 28), None)
    buckets = given.get("buckets", _number(256, 1 << 26), None)
    if maximum is not None and buckets is not None and not buckets <= maximum <= MAX_CHAIN * buckets:
        given.fail("max", f"must be from one to {MAX_CHAIN} times conntrack.buckets ({buckets}), not {maximum}")
    timeouts = given.mapping("timeouts", tuple(sorted(TIMEOUTS)))
    seconds = _number(1, MAX_TIMEOUT)
    named = {name: value for name in sorted(TIMEOUTS) if (value := timeouts.get(name, seconds, None)) is not None}
    return ConntrackSettings(maximum, buckets, named)


def _etcd(datastore: _Mapping, base: str) -> EtcdDatastore | None:
    try:
        return etcd_settings(datastore.plain(), os.environ, base)
    except ConfigError as error:
        datastore.refuse(error.path, error.message)
        return EtcdDatastore(EtcdConfig(()))


def _absolute(base: str, path: str) -> str:
    return os.path.normpath(os.path.join(base, path))


class _Mapping:
    """A mapping of the file: each value with the place it stands at. What is wrong is added to `found`, in any number."""

    def __init__(
        self, path: str, key: str, node: yaml.Node | None, known: tuple[str, ...], found: list[ConfigError]
    ) -> None:
        self._path = path
        self._key = key
        self._node = node
        self._found = found
        self._values: dict[str, yaml.Node] = {}
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, key, f"must be a mapping with the keys {_listed(known)}")
            return
        for name_node, value in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else "?"
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean `{near[0]}`?" if near else f"known keys are {_listed(known)}"
                self._fail(name_node, self._full(name), f"unknown key; {hint}")
            elif name in self._values:
                self._fail(name_node, self._full(name), "is given twice")
            else:
                self._values[name] = value

    def mapping(self, name: str, known: tuple[str, ...]) -> _Mapping:
        return _Mapping(self._path, self._full(name), self._values.get(name), known, self._found)

    def get(self, name: str, read: Callable[[object], T], default: T) -> T:
        """A value; the default where there is none, or a wrong one."""
        node = self._values.get(name)
        if node is None:
            return default
        if not isinstance(node, yaml.ScalarNode):
            self._fail(node, self._full(name), "must be one value, not a list or a mapping")
            return default
        try:
            return read(_scalar(node))
        except ValueError as error:
            self._fail(node, self._full(name), str(error))
            return default

    def fail(self, name: str, message: str) -> None:
        """Refuse a value for what it means together with another."""
        self._fail(self._values.get(name, self._node), f"{self._key}.{name}", message)

    def is_list(self, name: str) -> bool:
        return isinstance(self._values.get(name), yaml.SequenceNode)

    def get_all(self, name: str, read: Callable[[object], T], default: tuple[T, ...]) -> tuple[T, ...]:
        """A list of values."""
        node = self._values.get(name)
        if not isinstance(node, yaml.SequenceNode):
            return default
        values = []
        for index, each in enumerate(node.value):
            if not isinstance(each, yaml.ScalarNode):
                self._fail(each, f"{self._full(name)}[{index}]", f"must be one value; {QUOTES}")
                continue
            try:
                values.append(read(_scalar(each)))
            except ValueError as error:
                self._fail(each, f"{self._full(name)}[{index}]", str(error))
        return tuple(values)

    def get_any(self, name: str, read: Callable[[str, object], T]) -> dict[str, T]:
        """A mapping whose keys anybody may choose."""
        node = self._values.get(name)
        if node is None or node.tag == "tag:yaml.org,2002:null":
            return {}
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, self._full(name), "must be a mapping")
            return {}
        values: dict[str, T] = {}
        for name_node, value in node.value:
            key = name_node.value if isinstance(name_node, yaml.ScalarNode) else "?"
            try:
                if not isinstance(value, yaml.ScalarNode):
                    raise ValueError("must be one value, not a list or a mapping")
                values[key] = read(key, _scalar(value))
            except ValueError as error:
                self._fail(value, f"{self._full(name)}.{key}", str(error))
        return values

    def plain(self) -> dict[str, object]:
        """All that is there, as plain values."""
        values: dict[str, object] = {}
        for name, node in self._values.items():
            try:
                values[name] = yaml.SafeLoader("").construct_object(node, deep=True)
            except yaml.YAMLError:
                raise ConfigError(self._full(name), "is not a value YAML has") from None
        return values

    def refuse(self, key: str, message: str) -> None:
        """There is an error at a key of this mapping, given with its full path."""
        name = re.split(r"[.\[]", key.removeprefix(f"{self._key}."))[0]
        self._fail(self._values.get(name, self._node), key, message)

    def required(self, name: str, read: Callable[[object], str], what: str) -> str:
        value = self.get(name, read, "")
        if not value and name not in self._values:
            self._fail(self._node, self._full(name), f"is required: {what}")
        return value

    def _full(self, name: str) -> str:
        return f"{self._key}.{name}" if self._key else name

    def _fail(self, node: yaml.Node | None, key: str, message: str) -> None:
        line = f":{node.start_mark.line + 1}" if node is not None else ""
        self._found.append(ConfigError(f"{self._path}{line}", harmless(f"{key}: {message}" if key else message)))


def _scalar(node: yaml.ScalarNode) -> object:
    """A scalar with its type as YAML reads it; what is neither flag, integer nor null is text (dates, floats)."""
    kind = node.tag.rpartition(":")[2]
    if kind in ("bool", "int", "null"):
        value: object = yaml.SafeLoader("").construct_object(node)
        return value
    return node.value


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value!r}" if isinstance(value, str) else str(value)


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {_shown(value)}; put it in quotes")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {_shown(value)}")
    return value


def _number(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a number from {low} to {high}, not {_shown(value)}")
        return value

    return read


def _choice(*words: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in words:
            raise ValueError(f"must be {' or '.join(words)}, not {_shown(value)}")
        return str(value)

    return read


def _as_number(value: object) -> int:
    return _refused(lambda: as_as_number(value if isinstance(value, int) else _text(value), ""))


def _cluster_id(value: object) -> int:
    number = parse_router_id(_text(value))
    if not number:
        raise ValueError("must not be 0.0.0.0; leave it out for a node that reflects nothing")
    return number


def _way(family: Family) -> Callable[[object], Way]:
    """A method of autodetection, an address with its subnet's length, or `none`."""

    def read(value: object) -> Way:
        text = _text(value)
        if text == "none":
            return None
        if text[:1].isdigit() or ":" in text.partition("=")[0]:
            return _refused(lambda: as_node_address(text, "", family))
        return _refused(lambda: parse_method(text))

    return read


def _pool(family: Family) -> Callable[[object], Cidr | None]:
    def read(value: object) -> Cidr | None:
        text = _text(value)
        return None if text == "none" else _refused(lambda: as_cidr(text, "", family))

    return read


def _label(key: str, value: object) -> str:
    text = "true" if value is True else "false" if value is False else str(value)
    if not key or len(key) > 317 or len(text) > 63 or not (key + text).isprintable() or " " in key + text:
        raise ValueError(f"{_shown(key)}: {_shown(text)} is no label")
    return text


def _refused(read: Callable[[], T]) -> T:
    """A reader's error as the readers here tell it. Raises ValueError."""
    try:
        return read()
    except ConfigError as error:
        raise ValueError(error.message) from None


def _name(value: object) -> str:
    text = _text(value)
    if not text or len(text) > 253 or not text.isprintable() or " " in text:
        raise ValueError(f"must be a node's name, not {_shown(text)}")
    return text


def _folder(value: object) -> str:
    text = _text(value)
    if not text or "\0" in text:
        raise ValueError("must be the path of a folder")
    return text


def _interface_prefixes(value: object) -> tuple[str, ...]:
    names = tuple(name.strip() for name in _text(value).split(","))
    for name in names:
        if (
            not name
            or len(name.encode(errors="replace")) > 14
            or not name.isprintable()
            or any(char in name for char in " /*")
        ):
            raise ValueError(
                f"must be what names of interfaces begin with, such as cali or cali,tap, not {_shown(value)}"
            )
    return names


def _router_id(value: object) -> int | None:
    text = _text(value)
    if text == "hash":
        return HASHED
    try:
        return parse_router_id(text)
    except ValueError as error:
        raise ValueError(f"must be a router id such as 10.0.0.1, or hash: {error}") from None


def _one_address(metrics: _Mapping) -> tuple[tuple[str, int], ...]:
    """`metrics.listen` where it is no list: one address or `off`."""
    if metrics.is_list("listen"):
        return ()
    return metrics.get(
        "listen", lambda value: () if value in (False, "off") else (_listen_address(value),), (DEFAULT_LISTEN,)
    )


def _listen_address(value: object) -> tuple[str, int]:
    """`127.0.0.1:9971` or `[::1]:9971`."""
    text = value if isinstance(value, str) else ""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    try:
        if "%" in host or not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError(port)
        return str(ipaddress.ip_address(host)), int(port)
    except ValueError:
        raise ValueError(
            f"must be an IP address and a port such as 127.0.0.1:9971 or '[::1]:9971', or off, not {_shown(value)}"
        ) from None


def _protocol(value: object) -> int:
    lowest = FOREIGN_PROTOCOLS.stop
    if isinstance(value, int) and value is not True and value in FOREIGN_PROTOCOLS[1:]:
        raise ValueError(
            f"{value} is a route protocol of the kernel or the administrator; choose one from {lowest} to 255"
        )
    return _number(lowest, 255)(value)


def routing_daemon(value: object) -> int:
    """The route protocol of a routing daemon: its number, or `bird` and the like. Raises ValueError."""
    if isinstance(value, str) and not value.isdigit():
        names = {name: number for number, name in PROTOCOL_NAMES.items() if number not in FOREIGN_PROTOCOLS}
        if value not in names:
            raise ValueError(f"must be one of {', '.join(sorted(names))}, or a number, not {_shown(value)}")
        return names[value]
    return _protocol(int(value) if isinstance(value, str) else value)


def _table(value: object) -> int:
    if isinstance(value, str):
        known = {"default": 253, "main": 254, **_named_tables()}
        if value not in known:
            raise ValueError(
                f"{_shown(value)} is no routing table's name; give its number, or name it in {TABLE_NAMES[0]}"
            )
        value = known[value]
    number = _number(1, 0xFFFFFFFF)(value)
    if number == 255:
        raise ValueError("255 (local) is the kernel's own table; choose another")
    return number


def _named_tables() -> dict[str, int]:
    """Table names as iproute2 knows them: `number name` lines."""
    names: dict[str, int] = {}
    for path in TABLE_NAMES:
        for each in (path, *_fragments(f"{path}.d")):
            try:
                with open(each, encoding="utf-8", errors="replace") as file:
                    lines = file.read().splitlines()
            except OSError:
                continue
            for line in lines:
                words = line.partition("#")[0].split()
                if len(words) == 2 and words[0].isdigit():
                    names.setdefault(words[1], int(words[0]))
    return names


def _fragments(folder: str) -> list[str]:
    try:
        return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith(".conf")]
    except OSError:
        return []


def _host_name(path: str) -> str:
    name = socket.gethostname().lower()
    if not name:
        raise ConfigError(path, "nodeName: is required, for this host has no name")
    return name


def make_folder(path: str) -> None:
    """Create the datastore's folder with its parents. Raises ConfigError."""
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(path, f"cannot create the folder datastore.path names: {error.strerror}") from None


def make_folders(config: Config) -> None:
    """Create runDir and stateDir with their parents. Raises ConfigError."""
    for key, path in (("runDir", config.run_dir), ("stateDir", config.state_dir)):
        try:
            os.makedirs(path, mode=0o755, exist_ok=True)
        except OSError as error:
            raise ConfigError(path, f"cannot create the folder {key} names: {error.strerror}") from None
        if not os.access(path, os.W_OK | os.X_OK):
            raise ConfigError(path, f"no permission to write in the folder {key} names")
