"""cli: to be written."""
