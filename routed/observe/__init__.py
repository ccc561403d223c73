"""observe: to be written."""
