"""Numbers of linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, under the kernel's names."""

from __future__ import annotations

NETLINK_ROUTE = 0

#: Message types below this are netlink's own (struct nlmsghdr.nlmsg_type).
NLMSG_NOOP = 1
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
RTM_NEWNEIGH = 28
RTM_DELNEIGH = 29

NLM_F_REQUEST = 0x001
NLM_F_MULTI = 0x002
NLM_F_ACK = 0x004
NLM_F_DUMP_INTR = 0x010
#: Modifiers of a NEW request.
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
#: Modifier of a GET request: NLM_F_ROOT | NLM_F_MATCH.
NLM_F_DUMP = 0x300
#: Flags of an NLMSG_ERROR: the request is not copied into it; extended-ACK attributes follow.
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

#: Attribute of an extended ACK: the kernel's sentence.
NLMSGERR_ATTR_MSG = 1

#: Multicast groups (RTNLGRP_*).
RTNLGRP_LINK = 1
RTNLGRP_IPV4_IFADDR = 5
RTNLGRP_IPV4_ROUTE = 7
RTNLGRP_IPV6_IFADDR = 9
RTNLGRP_IPV6_ROUTE = 11

AF_UNSPEC = 0
AF_INET = 2
AF_INET6 = 10

RT_TABLE_COMPAT = 252
"""rtm_table of a table whose number needs RTA_TABLE."""
RT_TABLE_MAIN = 254

RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RT_SCOPE_NOWHERE = 255

RTM_F_CLONED = 0x200

RTNH_F_ONLINK = 4

RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_MULTIPATH = 9
RTA_TABLE = 15
RTA_VIA = 18

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINKINFO = 18
IFLA_NET_NS_FD = 28
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
VETH_INFO_PEER = 1

IFF_UP = 0x1
IFF_LOWER_UP = 0x10000

IFA_ADDRESS = 1
IFA_LOCAL = 2
IFA_FLAGS = 8
IFA_F_NODAD = 0x02

NDA_DST = 1
NDA_LLADDR = 2
NUD_PERMANENT = 0x80

IP6_RT_PRIO_USER = 1024
"""The metric the kernel gives an IPv6 route that names none."""
