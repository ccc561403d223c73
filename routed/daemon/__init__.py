"""daemon: to be written."""
