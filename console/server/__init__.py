"""Puts the system on a server that runs systemd, and takes it away again."""
