"""From a configuration to an asset."""
