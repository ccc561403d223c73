"""Adj-RIB-In -> Loc-RIB -> Adj-RIB-Out: the decision, route filters, next-hop tracking, update groups.

Invariants: pure and synchronous; prefixes are wire bytes, paths are shared by the prefixes announced with them; what the
tables hold depends on what was announced, never on the order. RFC 4271 sections 3.2 and 9, RFC 4456. What does not belong
here: sessions and octets (`bgp/`), what should be filtered or originated (`plan/`), the kernel (`dataplane/`).
"""
