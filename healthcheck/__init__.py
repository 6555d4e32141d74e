"""Probes backends and says which of them may be chosen. Knows nothing of services, pools or tables."""
