"""A manifest of every kind that says every field, beyond those that test_schema writes out."""

from __future__ import annotations

from routed.model.resources import JsonObject, JsonValue


def manifest(kind: str, spec: JsonValue = None, name: str = "default", **more: JsonValue) -> JsonObject:
    version = more.pop("apiVersion", "projectcalico.org/v3")
    made: JsonObject = {"apiVersion": version, "kind": kind, "metadata": {"name": name}}
    if spec is not None:
        made["spec"] = spec
    return made | more


def named(kind: str, namespace: str, name: str, spec: JsonValue, **more: JsonValue) -> JsonObject:
    return manifest(kind, spec, **more) | {"metadata": {"name": name, "namespace": namespace}}


RULE: JsonObject = {
    "action": "Allow",
    "ipVersion": 4,
    "protocol": "TCP",
    "notProtocol": "UDP",
    "source": {
        "nets": ["10.0.0.0/8"],
        "notNets": ["10.9.0.0/16"],
        "selector": "app == 'web'",
        "notSelector": "has(quarantine)",
        "namespaceSelector": "global()",
        "serviceAccounts": {"names": ["x"], "selector": "team == 'a'"},
    },
    "destination": {"ports": [5432, "6000:6010", "named"], "notPorts": ["22"]},
    "http": {"methods": ["GET"], "paths": [{"exact": "/a"}, {"prefix": "/b"}]},
    "metadata": {"annotations": {"why": "because"}},
}
PING: JsonObject = {
    "action": "Deny", "protocol": "ICMP", "icmp": {"type": 8, "code": 0}, "notICMP": {"type": 3, "code": 1},
}  # fmt: skip
SERVICES: JsonObject = {"action": "Pass", "destination": {"services": {"name": "s", "namespace": "n"}}}
FROM_SERVICES: JsonObject = {"action": "Log", "source": {"services": {"name": "s", "namespace": "n"}}}

POLICY: JsonObject = {
    "tier": "default",
    "order": 100.5,
    "selector": "app == 'db'",
    "serviceAccountSelector": "role == 'db'",
    "types": ["Ingress", "Egress"],
    "performanceHints": ["AssumeNeededOnEveryNode"],
    "ingress": [RULE, PING, FROM_SERVICES],
    "egress": [SERVICES],
}

BLOCK: JsonObject = {
    "cidr": "10.244.1.0/30",
    "affinity": "host:node-1",
    "affinity_claim_time": "2026-05-01T10:00:00Z",
    "affinityClaimTime": "2026-05-01T10:00:00Z",
    "hostAffinity": "node-1",
    "allocations": [0, None, 1, 2],
    "unallocated": [1],
    "attributes": [
        {"handle_id": "ipip-tunnel-addr-node-1", "secondary": {"node": "node-1", "type": "ipipTunnelAddress"}},
        {
            "handle_id": "k8s-pod-network.Ab_12",
            "secondary": {"pod": "web-0"},
            "alternateOwnerAttrs": {"pod": "web-0-new"},
        },
        {"handle_id": None, "secondary": None, "releasedAt": "2026-05-01T10:00:00Z"},
    ],
    "sequenceNumber": 1777000000000000001,
    "sequenceNumberForAllocation": {"0": 1777000000000000000, "2": 18446744073709551615},
    "deleted": False,
}

KNP: JsonObject = {
    "podSelector": {"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]},
    "policyTypes": ["Ingress", "Egress"],
    "ingress": [
        {
            "from": [
                {"podSelector": {"matchLabels": {"app": "web"}}},
                {
                    "namespaceSelector": {
                        "matchLabels": {"team": "a"},
                        "matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["dev"]}],
                    },
                    "podSelector": {"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]},
                },
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
            ],
            "ports": [
                {"protocol": "TCP", "port": 8000, "endPort": 8080},
                {"port": "http"},
                {"protocol": "UDP"},
            ],
        }
    ],
    "egress": [
        {
            "to": [
                {"podSelector": {"matchLabels": {"a": "b"}, "matchExpressions": []}, "namespaceSelector": {}},
                {"ipBlock": {"cidr": "fd00::/8", "except": []}},
                {"namespaceSelector": {"matchLabels": {"a": "b"}, "matchExpressions": []}},
            ],
            "ports": [{"protocol": "SCTP", "port": 7, "endPort": 9}],
        }
    ],
}
K8S_METADATA: JsonObject = {"name": "web", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}

EXAMPLES: dict[str, JsonObject] = {
    "IPReservation": manifest("IPReservation", {"reservedCIDRs": ["10.244.0.0/28", "10.244.9.9", "fd00::/120"]}),
    "IPAMBlock": manifest("IPAMBlock", BLOCK, name="10-244-1-0-30"),
    "IPAMHandle": manifest(
        "IPAMHandle",
        {"handleID": "k8s-pod-network.Ab_12", "block": {"10.244.1.0/26": 2, "fd00::/122": 1}, "deleted": False},
        name="k8s-pod-network.Ab_12",
    ),
    "IPAMConfig": manifest(
        "IPAMConfig",
        {
            "strictAffinity": True,
            "autoAllocateBlocks": True,
            "maxBlocksPerHost": 4,
            "ipCooldownSeconds": 30,
            "kubeVirtVMAddressPersistence": "Enabled",
        },
    ),
    "Tier": manifest("Tier", {"order": 100, "defaultAction": "Pass"}, name="security"),
    "NetworkPolicy": named("NetworkPolicy", "shop", "db", POLICY),
    "GlobalNetworkPolicy": manifest(
        "GlobalNetworkPolicy",
        POLICY
        | {
            "namespaceSelector": "all()",
            "doNotTrack": True,
            "preDNAT": False,
            "applyOnForward": True,
            "tier": "security",
        },
        name="security.db",
    ),
    "StagedNetworkPolicy": named("StagedNetworkPolicy", "shop", "db", POLICY | {"stagedAction": "Set"}),
    "StagedGlobalNetworkPolicy": manifest("StagedGlobalNetworkPolicy", POLICY | {"stagedAction": "Learn"}, name="x"),
    "StagedKubernetesNetworkPolicy": named("StagedKubernetesNetworkPolicy", "shop", "x", KNP | {"stagedAction": "Set"}),
    "Profile": manifest(
        "Profile",
        {
            "ingress": [
                {**RULE, "destination": {**RULE["source"], "ports": [1], "notPorts": [2]}},  # type: ignore[dict-item]  # JSON
                PING,
                FROM_SERVICES,
            ],
            "egress": [{"action": "Allow", "source": {}, "destination": {}}, SERVICES | {"action": "Allow"}],
            "labelsToApply": {"pcns.kubernetes.io/metadata.name": "shop", "pcns.projectcalico.org/name": "shop"},
        },
        name="kns.shop",
    ),
    "NetworkSet": named("NetworkSet", "shop", "db", {"nets": ["198.51.100.0/28"]}),
    "GlobalNetworkSet": manifest("GlobalNetworkSet", {"nets": ["198.51.100.0/28", "fd00::1"]}),
    "WorkloadEndpoint": named(
        "WorkloadEndpoint",
        "shop",
        "node--1-k8s-web--0-eth0",
        {
            "orchestrator": "k8s",
            "workload": "",
            "node": "node-1",
            "containerID": "ab12",
            "pod": "web-0",
            "endpoint": "eth0",
            "serviceAccountName": "default",
            "ipNetworks": ["10.244.1.5/32", "fd00::5/128"],
            "ipNATs": [{"internalIP": "10.244.1.5", "externalIP": "198.51.100.5"}],
            "ipv4Gateway": "169.254.1.1",
            "ipv6Gateway": "fe80::1",
            "profiles": ["kns.shop", "ksa.shop.default"],
            "interfaceName": "cali1a2b3c4d5e6",
            "mac": "0e:00:00:00:00:01",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080, "hostPort": 80, "hostIP": "10.0.0.1"}],
            "allowSpoofedSourcePrefixes": ["10.9.0.0/16"],
            "qosControls": {"ingressBandwidth": 1000000, "dscp": 20},
        },
    ),
    "HostEndpoint": manifest(
        "HostEndpoint",
        {
            "node": "node-1",
            "interfaceName": "eth0",
            "expectedIPs": ["10.0.0.1"],
            "profiles": ["projectcalico-default-allow"],
            "ports": [{"name": "ssh", "protocol": "TCP", "port": 22}],
        },
        name="node-1-eth0",
    ),
    "ClusterInformation": manifest(
        "ClusterInformation",
        {
            "clusterGUID": "ca5c4d",
            "clusterType": "k8s,bgp",
            "calicoVersion": "v3.32.1",
            "datastoreReady": False,
            "variant": "Calico",
        },
    ),
    "FelixConfiguration": manifest(
        "FelixConfiguration",
        {
            "interfacePrefix": "cali, tap",
            "defaultEndpointToHostAction": "ACCEPT",
            "failsafeInboundHostPorts": [{"protocol": "tcp", "port": 22, "net": "0.0.0.0/0"}],
            "failsafeOutboundHostPorts": [],
            "natPortRange": "32768:65535",
            "natOutgoingAddress": "10.0.0.1",
            "deviceRouteSourceAddress": "10.0.0.1",
            "deviceRouteSourceAddressIPv6": "fd00::1",
            "deviceRouteProtocol": 80,
            "removeExternalRoutes": True,
            "programClusterRoutes": "Enabled",
            "ipForwarding": "Enabled",
            "ipv6Support": True,
            "ipipMTU": 1480,
            "vxlanMTU": 1450,
            "vxlanMTUV6": 1430,
            "vxlanPort": 4789,
            "vxlanVNI": 4096,
            "workloadSourceSpoofing": "Any",
            "disableConntrackInvalidCheck": False,
            "ipv4NormalRoutePriority": 1024,
            "ipv6NormalRoutePriority": 1024,
            "bpfEnabled": False,
        },
    ),
    "CalicoNodeStatus": manifest(
        "CalicoNodeStatus",
        {"node": "node-1", "classes": ["Agent", "BGP", "Routes"], "updatePeriodSeconds": 5},
        name="any",
        status={"lastUpdated": None, "agent": {"birdV4": {"state": "Ready"}}},
    ),
    "KubeControllersConfiguration": manifest("KubeControllersConfiguration", {"controllers": {"node": {}}}),
    "KubernetesNetworkPolicy": manifest("NetworkPolicy", KNP, apiVersion="networking.k8s.io/v1")
    | {"metadata": {"name": "db", "namespace": "shop"}},
    "Service": manifest(
        "Service",
        {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00:96::a"],
            "externalIPs": ["203.0.113.7"],
            "externalTrafficPolicy": "Local",
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}],
        },
        apiVersion="v1",
        status={"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}, {"hostname": "x"}]}},
    )
    | {"metadata": {"name": "web", "namespace": "shop"}},
    "EndpointSlice": {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": K8S_METADATA,
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.244.1.5"],
                "conditions": {"ready": True, "serving": True},
                "nodeName": "node-1",
                "zone": "z",
            },
            {"addresses": ["10.244.2.5"], "conditions": {"ready": False}},
            {"addresses": ["10.244.2.6"]},
        ],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    },
    "Namespace": manifest("Namespace", {"finalizers": ["kubernetes"]}, name="shop", apiVersion="v1"),
    "Pod": manifest(
        "Pod",
        {
            "nodeName": "node-1",
            "serviceAccountName": "web",
            "containers": [{"name": "c", "image": "x", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        apiVersion="v1",
        status={"phase": "Running", "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00::5"}]},
    )
    | {"metadata": {"name": "web-0", "namespace": "shop", "labels": {"app": "web"}}},
}
"""By kind."""
