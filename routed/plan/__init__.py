"""plan: to be written."""
