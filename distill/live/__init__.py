"""A page on which a run is watched, paused and stopped while it trains."""
