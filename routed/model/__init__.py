"""Calico-shaped resources: values, schema, selectors and key <-> path; `Update` is the one input of `plan`.

Invariants: pure (no files, no clock, no asyncio); every value is immutable once parsed; the words are Calico's
(projectcalico.org/v3), the values are routed's own (packed addresses, wire prefixes, integers, seconds). Schema types
stop here: nothing below reads a manifest. What does not belong here: where resources come from (`datastore/`) and
what follows from them (`plan/`).
"""
