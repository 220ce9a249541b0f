"""Malformed inputs through the public entry points: `make fuzz`."""
