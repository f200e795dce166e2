"""Adapter: the only importer of paho-mqtt."""
