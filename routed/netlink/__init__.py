"""netlink: to be written."""
