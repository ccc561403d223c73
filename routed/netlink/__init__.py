"""Bytes <-> rtnetlink messages about routes, links and addresses, in batches: the hot path to the kernel's FIB.

Invariants: no sockets, no clock; what a function is given decides what it returns. Netlink is in host byte order
(addresses within it in network order), messages and attributes are aligned to 4 octets. Requests are built so that all
of a batch's messages have one layout (RTA_DST first), which lets an error be matched to its prefix by the copy of the
request the kernel puts into it.

Sources: RFC 3549, Linux include/uapi/linux/netlink.h and rtnetlink.h, Documentation/userspace-api/netlink.
Not here: which routes should exist (`dataplane/routes`), sockets (`dataplane/sockets`), anything but routes, links and
addresses (rarer requests go through pyroute2).
"""
