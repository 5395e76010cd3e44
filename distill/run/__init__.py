"""Runs: from a configuration to an asset."""
