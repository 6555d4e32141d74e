"""Packets: bytes as fields with names, and back. Pure: opens no file, sends nothing."""
