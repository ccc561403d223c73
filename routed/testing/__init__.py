"""testing: to be written."""
