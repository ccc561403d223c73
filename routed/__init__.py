"""routed: pure layer-3 networking for one node, in one process. See ARCHITECTURE.md for the rooms of this house."""

__version__ = "0.1.0"
