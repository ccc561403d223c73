"""dataplane: to be written."""
