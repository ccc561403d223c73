"""Values: address families, wire prefixes, addresses, AS numbers, router ids.

Invariants: no I/O, no clock; everything is immutable and hashable. A *wire prefix* (`bytes`) is the NLRI form of
RFC 4271 section 4.3: one octet of length in bits, then the fewest octets that hold it, with the bits past the length
zero. That canonical form is the key of every table in routed, so equality of bytes is equality of prefixes within a
family. An *address* is its packed octets, 4 or 16 of them. Text is for people and happens at the edges.
"""
