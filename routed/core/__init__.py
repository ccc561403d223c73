"""core: to be written."""
