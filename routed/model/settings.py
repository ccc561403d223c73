"""What a cluster says about itself and its daemons: ClusterInformation, FelixConfiguration, status objects.

Invariants: everything is frozen. Of FelixConfiguration the fields that a node without Felix can act on are values;
the others are known by name, so that a cluster's own object is read whole, and what of them is set and has no effect
can be told (`set_fields`).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import ClassVar

from routed.errors import ConfigError
from routed.model.fields import Fields, as_choice, as_text, field_path, shown
from routed.model.head import Head, Kind, kind_shape
from routed.model.policies import PortRange, as_port, as_protocol
from routed.model.resources import DEFAULT_ROUTE_PRIORITY, Cidr, ProgramClusterRoutes, Resource
from routed.model.workloads import INTERFACE_PREFIX
from routed.net.families import Family
from routed.values import dataclass

#: Seconds: the longest leakGracePeriod, a year.
MAX_LEAK_GRACE = 366 * 86400.0


class EndpointToHostAction(enum.StrEnum):
    """What becomes of packets from a workload to its own node, after its egress policy."""

    DROP = "Drop"
    RETURN = "Return"
    ACCEPT = "Accept"


class NodeStatusClass(enum.StrEnum):
    AGENT = "Agent"
    BGP = "BGP"
    ROUTES = "Routes"


@dataclass(frozen=True, slots=True)
class ProtoPort:
    """A failsafe port: `port` of `protocol`, to or from `net` (None: anywhere)."""

    protocol: int
    port: int
    net: Cidr | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterInformation(Resource):
    kind: ClassVar[str] = "ClusterInformation"

    cluster_guid: str = ""
    cluster_type: str = ""
    calico_version: str = ""
    datastore_ready: bool = True
    """False while the datastore is being moved: state is held, nothing new is handed out."""
    variant: str = ""

    @property
    def release(self) -> tuple[int, int] | None:
        """Which Calico runs the cluster, (3, 32) for v3.32.1; None where that is not said."""
        found = re.match(r"v?([0-9]{1,4})\.([0-9]{1,4})", self.calico_version)
        return None if found is None else (int(found[1]), int(found[2]))


def locked(found: Resource | None) -> str:
    """Why nothing may be written, as while the datastore is moved; empty where it may. Of ClusterInformation `default`."""
    if isinstance(found, ClusterInformation) and not found.datastore_ready:
        return "the datastore is locked (ClusterInformation default: datastoreReady is false)"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FelixConfiguration(Resource):
    """`default` is the cluster's; `node.<name>` overrides it field by field. None: not set."""

    kind: ClassVar[str] = "FelixConfiguration"

    interface_prefix: tuple[str, ...] | None = None
    """Beginnings of the names of workload interfaces."""
    default_endpoint_to_host_action: EndpointToHostAction | None = None
    failsafe_inbound: tuple[ProtoPort, ...] | None = None
    failsafe_outbound: tuple[ProtoPort, ...] | None = None
    nat_port_range: PortRange | None = None
    nat_outgoing_address: bytes | None = None
    device_route_source_address: bytes | None = None
    device_route_source_address_ipv6: bytes | None = None
    device_route_protocol: int | None = None
    remove_external_routes: bool | None = None
    program_cluster_routes: ProgramClusterRoutes | None = None
    ip_forwarding: bool | None = None
    ipv6_support: bool | None = None
    ipip_mtu: int | None = None
    vxlan_mtu: int | None = None
    vxlan_mtu_v6: int | None = None
    vxlan_port: int | None = None
    vxlan_vni: int | None = None
    workload_source_spoofing: bool | None = None
    disable_conntrack_invalid_check: bool | None = None
    ipv4_normal_route_priority: int = DEFAULT_ROUTE_PRIORITY
    ipv6_normal_route_priority: int = DEFAULT_ROUTE_PRIORITY

    @property
    def node_name(self) -> str | None:
        """The node a `node.<name>` configuration is for; None for the others."""
        return self.name[5:] if self.name.startswith("node.") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalicoNodeStatus(Resource):
    """A request for a node's status, which the node's daemon writes into `status` on the period."""

    kind: ClassVar[str] = "CalicoNodeStatus"

    node: str
    classes: frozenset[NodeStatusClass] = frozenset()
    update_period: float = 10.0
    """Seconds; 0: once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeControllersConfiguration(Resource):
    """Settings of Calico's own controllers, of which those about garbage are for us too."""

    kind: ClassVar[str] = "KubeControllersConfiguration"

    leak_grace_period: float | None = None
    """Seconds an address is without an owner before it is taken back; 0: it never is; None: nothing is said."""


_FELIX_FIELDS = frozenset(
    {
        "interfacePrefix", "defaultEndpointToHostAction", "failsafeInboundHostPorts", "failsafeOutboundHostPorts",
        "natPortRange", "natOutgoingAddress", "deviceRouteSourceAddress", "deviceRouteSourceAddressIPv6",
        "deviceRouteProtocol", "removeExternalRoutes", "programClusterRoutes", "ipForwarding", "ipv6Support", "ipipMTU",
        "vxlanMTU", "vxlanMTUV6", "vxlanPort", "vxlanVNI", "workloadSourceSpoofing", "disableConntrackInvalidCheck",
        "ipv4NormalRoutePriority", "ipv6NormalRoutePriority",
    }
)  # fmt: skip
"""The fields of a FelixConfiguration that are read into values."""

_OTHER_FELIX_FIELDS = """
    allowIPIPPacketsFromWorkloads allowVXLANPacketsFromWorkloads awsSrcDstCheck bpfAttachType bpfCTLBLogFilter
    bpfConnectTimeLoadBalancing bpfConnectTimeLoadBalancingEnabled bpfConntrackLogLevel bpfConntrackMode
    bpfConntrackTimeouts bpfDSROptoutCIDRs bpfDataIfacePattern bpfDisableGROForIfaces bpfDisableUnprivileged bpfEnabled
    bpfEnforceRPF bpfExcludeCIDRsFromNAT bpfExportBufferSizeMB bpfExtToServiceConnmark bpfExternalServiceMode
    bpfForceTrackPacketsFromIfaces bpfHostConntrackBypass bpfHostNetworkedNATWithoutCTLB bpfIPFragTimeout
    bpfIPFragmentReassemblyEnabled bpfJITHardening bpfKubeProxyEndpointSlicesEnabled bpfKubeProxyHealthzPort
    bpfKubeProxyIptablesCleanupEnabled bpfKubeProxyMinSyncPeriod bpfL3IfacePattern bpfLogFilters bpfLogLevel
    bpfMaglevMaxEndpointsPerService bpfMaglevMaxServices bpfMapSizeConntrack bpfMapSizeConntrackCleanupQueue
    bpfMapSizeConntrackScaling bpfMapSizeIPSets bpfMapSizeIfState bpfMapSizeNATAffinity bpfMapSizeNATBackend
    bpfMapSizeNATFrontend bpfMapSizePerCpuConntrack bpfMapSizeRoute bpfOverlayHostSourceIP bpfPSNATPorts
    bpfPolicyDebugEnabled bpfProfiling bpfRedirectToPeer cgroupV2Path chainInsertMode dataplaneDriver
    dataplaneWatchdogTimeout debugDisableLogDropping debugHost debugMemoryProfilePath debugPort
    debugSimulateCalcGraphHangAfter debugSimulateDataplaneApplyDelay debugSimulateDataplaneHangAfter
    endpointReportingDelay endpointReportingEnabled endpointStatusPathPrefix externalNodesList featureDetectOverride
    featureGates floatingIPs flowLogsCollectorDebugTrace flowLogsFlushInterval flowLogsGoldmaneServer
    flowLogsLocalReporter flowLogsPolicyEvaluationMode genericXDPEnabled goGCThreshold goMaxProcs goMemoryLimitMB
    healthEnabled healthHost healthPort healthTimeoutOverrides interfaceExclude interfaceRefreshInterval ipipEnabled
    ipsetsRefreshInterval iptablesBackend iptablesFilterAllowAction iptablesFilterDenyAction iptablesLockFilePath
    iptablesLockProbeInterval iptablesLockTimeout iptablesMangleAllowAction iptablesMarkMask
    iptablesNATOutgoingInterfaceFilter iptablesPostWriteCheckInterval iptablesRefreshInterval ipv4ElevatedRoutePriority
    ipv6ElevatedRoutePriority istioAmbientMode istioDSCPMark kubeNodePortRanges liveMigrationRouteConvergenceTime
    localSubnetL2Reachability localSubnetL2ReachabilityRefreshInterval logActionRateLimit logActionRateLimitBurst
    logDebugFilenameRegex logFilePath logPrefix logSeverityFile logSeverityScreen logSeveritySys maxIpsetSize
    metadataAddr metadataPort mtuIfacePattern natOutgoingExclusions netlinkTimeout nftablesDropActionOverride
    nftablesFilterAllowAction nftablesFilterDenyAction nftablesFlowTableDataIfacePattern nftablesFlowTableOffload
    nftablesMangleAllowAction nftablesMarkMask nftablesMode nftablesRefreshInterval openstackRegion policySyncPathPrefix
    prometheusGoMetricsEnabled prometheusMetricsCAFile prometheusMetricsCertFile prometheusMetricsClientAuth
    prometheusMetricsEnabled prometheusMetricsHost prometheusMetricsKeyFile prometheusMetricsPort
    prometheusProcessMetricsEnabled prometheusWireGuardMetricsEnabled reportingInterval reportingTTL requireMTUFile
    routeRefreshInterval routeSource routeSyncDisabled routeTableRange routeTableRanges serviceLoopPrevention
    sidecarAccelerationEnabled usageReportingEnabled usageReportingInitialDelay usageReportingInterval
    useInternalDataplaneDriver vxlanEnabled windowsManageFirewallRules wireguardEnabled wireguardEnabledV6
    wireguardHostEncryptionEnabled wireguardInterfaceName wireguardInterfaceNameV6 wireguardKeepAlive
    wireguardListeningPort wireguardListeningPortV6 wireguardMTU wireguardMTUV6 wireguardRoutingRulePriority
    wireguardThreadingEnabled xdpEnabled xdpRefreshInterval
"""


def _parse_cluster_information(head: Head) -> ClusterInformation:
    spec = head.spec
    return ClusterInformation(
        **head.common,
        cluster_guid=spec.text("clusterGUID"),
        cluster_type=spec.text("clusterType"),
        calico_version=spec.text("calicoVersion"),
        datastore_ready=spec.boolean("datastoreReady") is not False,
        variant=spec.text("variant"),
    )


def _parse_interface_prefix(spec: Fields) -> tuple[str, ...] | None:
    text = spec.text("interfacePrefix")
    prefixes = tuple(part.strip() for part in text.split(",") if part.strip())
    for prefix in prefixes:
        if len(prefix.encode(errors="replace")) > 14 or not prefix.isprintable() or "/" in prefix:
            raise spec.error(
                "interfacePrefix",
                f"must be what names of interfaces begin with, of at most 14 octets, not {shown(prefix)}",
            )
    return prefixes or None


def _parse_felix(head: Head) -> FelixConfiguration:
    spec = head.spec
    ports = spec.values.get("natPortRange")
    nat_ports = as_port(ports, spec.at("natPortRange")) if ports not in (None, "") else None
    if nat_ports is not None and not isinstance(nat_ports, PortRange):
        raise spec.error("natPortRange", 'must be ports as "32768:65535"')
    return FelixConfiguration(
        **head.common,
        interface_prefix=_parse_interface_prefix(spec),
        # Felix reads this one in any case, and manifests write ACCEPT
        default_endpoint_to_host_action=spec.choice("defaultEndpointToHostAction", EndpointToHostAction, any_case=True),
        failsafe_inbound=_parse_failsafe(spec, "failsafeInboundHostPorts"),
        failsafe_outbound=_parse_failsafe(spec, "failsafeOutboundHostPorts"),
        nat_port_range=nat_ports,
        nat_outgoing_address=spec.address("natOutgoingAddress", Family.IPV4_UNICAST),
        device_route_source_address=spec.address("deviceRouteSourceAddress", Family.IPV4_UNICAST),
        device_route_source_address_ipv6=spec.address("deviceRouteSourceAddressIPv6", Family.IPV6_UNICAST),
        device_route_protocol=spec.integer("deviceRouteProtocol", 0, 255),
        remove_external_routes=spec.boolean("removeExternalRoutes"),
        program_cluster_routes=spec.choice("programClusterRoutes", ProgramClusterRoutes),
        ip_forwarding=_enabled(spec, "ipForwarding", "Enabled", "Disabled"),
        ipv6_support=spec.boolean("ipv6Support"),
        ipip_mtu=spec.integer("ipipMTU", 0, 65535),
        vxlan_mtu=spec.integer("vxlanMTU", 0, 65535),
        vxlan_mtu_v6=spec.integer("vxlanMTUV6", 0, 65535),
        vxlan_port=spec.integer("vxlanPort", 1, 65535),
        vxlan_vni=spec.integer("vxlanVNI", 1, (1 << 24) - 1),
        workload_source_spoofing=_enabled(spec, "workloadSourceSpoofing", "Any", "Disabled"),
        disable_conntrack_invalid_check=spec.boolean("disableConntrackInvalidCheck"),
        ipv4_normal_route_priority=spec.integer("ipv4NormalRoutePriority", 1, 0x7FFFFFFE) or DEFAULT_ROUTE_PRIORITY,
        ipv6_normal_route_priority=spec.integer("ipv6NormalRoutePriority", 1, 0x7FFFFFFE) or DEFAULT_ROUTE_PRIORITY,
    )


def _enabled(spec: Fields, name: str, on: str, off: str) -> bool | None:
    text = spec.text(name)
    if text not in ("", on, off):
        raise spec.error(name, f"must be {on} or {off}")
    return text == on if text else None


def _parse_failsafe(spec: Fields, name: str) -> tuple[ProtoPort, ...] | None:
    if spec.values.get(name) is None:
        return None
    found: list[ProtoPort] = []
    for entry in spec.objects(name):
        port = entry.integer("port", 0, 65535)
        if port is None:
            raise entry.error("port", "is required")
        protocol = as_protocol(entry.values.get("protocol") or "tcp", entry.at("protocol"))
        found.append(ProtoPort(protocol, port, entry.cidr("net")))
    return tuple(found)


def felix_in_force(by_name: Mapping[str, FelixConfiguration], node_name: str) -> tuple[FelixConfiguration, ...]:
    """Those that count for a node: of a field the first that sets it."""
    return tuple(by_name[name] for name in (f"node.{node_name}", "default") if name in by_name)


def may_spoof(by_name: Mapping[str, FelixConfiguration], node_name: str) -> bool:
    """Whether pods may have the sources they ask for (workloadSourceSpoofing: Any)."""
    said = (each.workload_source_spoofing for each in felix_in_force(by_name, node_name))
    return next((each for each in said if each is not None), False)


def workload_prefixes(
    by_name: Mapping[str, FelixConfiguration], node_name: str, configured: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """What names of workloads' interfaces begin with; `configured`: what the node's own configuration says.

    Those that routed makes are always among them.
    """
    said = configured
    for each in felix_in_force(by_name, node_name):
        said = said or each.interface_prefix or ()
    return said if any(INTERFACE_PREFIX.startswith(each) for each in said) else (*said, INTERFACE_PREFIX)


def set_fields(configuration: FelixConfiguration) -> list[str]:
    """The fields that a configuration says anything in, sorted."""
    spec = configuration.manifest.get("spec")
    return sorted(name for name, value in (spec if isinstance(spec, dict) else {}).items() if value not in (None, ""))


def _parse_node_status(head: Head) -> CalicoNodeStatus:
    spec = head.spec
    classes = frozenset(as_choice(as_text(value, path), path, NodeStatusClass) for path, value in spec.array("classes"))
    if not classes:
        raise ConfigError(field_path(head.top.at("spec"), "classes"), "is required: Agent, BGP and Routes, or some")
    period = spec.integer("updatePeriodSeconds", 0, 86400)
    return CalicoNodeStatus(
        **head.common,
        node=spec.required_text("node"),
        classes=classes,
        update_period=10.0 if period is None else float(period),
    )


def _parse_kube_controllers(head: Head) -> KubeControllersConfiguration:
    controllers = head.spec.object("controllers")
    node = controllers.object("node") if controllers is not None else None
    grace = node.duration("leakGracePeriod", MAX_LEAK_GRACE) if node is not None else None
    return KubeControllersConfiguration(**head.common, leak_grace_period=grace)


_BGP_DAEMON = "{ lastBootTime lastReconfigurationTime routerID state version }"
_STATUS_PEER = "{ peerIP since state type }"
_STATUS_ROUTE = "{ destination gateway interface learnedFrom { peerIP sourceType } type }"

FELIX = Kind(
    name=FelixConfiguration.kind,
    plural="felixconfigurations",
    short=("felixconfig", "felixconfigs"),
    read=_parse_felix,
    shape=kind_shape(f"""
        spec {{
            {_OTHER_FELIX_FIELDS} {" ".join(sorted(_FELIX_FIELDS))}
            failsafeInboundHostPorts {{ net port protocol }} failsafeOutboundHostPorts {{ net port protocol }}
        }}
        status
    """),
)

KINDS = (
    Kind(
        name=ClusterInformation.kind,
        plural="clusterinformations",
        short=("clusterinfo",),
        read=_parse_cluster_information,
        shape=kind_shape("spec { calicoVersion clusterGUID clusterType datastoreReady variant } status"),
    ),
    FELIX,
    Kind(
        name=CalicoNodeStatus.kind,
        plural="caliconodestatuses",
        short=("nodestatus",),
        read=_parse_node_status,
        shape=kind_shape(f"""
            spec {{ classes node updatePeriodSeconds }}
            status {{
                agent {{ birdV4 {_BGP_DAEMON} birdV6 {_BGP_DAEMON} }}
                bgp {{
                    numberEstablishedV4 numberEstablishedV6 numberNotEstablishedV4 numberNotEstablishedV6
                    peersV4 {_STATUS_PEER} peersV6 {_STATUS_PEER}
                }}
                lastUpdated routes {{ routesV4 {_STATUS_ROUTE} routesV6 {_STATUS_ROUTE} }}
            }}
        """),
    ),
    Kind(
        name=KubeControllersConfiguration.kind,
        plural="kubecontrollersconfigurations",
        short=("kubecontrollersconfig",),
        read=_parse_kube_controllers,
        shape=kind_shape("spec status"),
    ),
)
