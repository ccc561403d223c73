"""Building what is installed: man pages, the wheel, the Debian package. Not part of what is installed."""
