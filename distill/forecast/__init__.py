"""What a step will take of memory and time, before any weights are loaded."""
