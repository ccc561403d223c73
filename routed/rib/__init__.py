"""rib: to be written."""
