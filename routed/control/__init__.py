"""control: to be written."""
