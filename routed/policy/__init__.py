"""Selectors and policies -> which packets may pass, in the words of `desired_policy`. Knows no firewall and no kernel."""
