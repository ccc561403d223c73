"""bgp: to be written."""
