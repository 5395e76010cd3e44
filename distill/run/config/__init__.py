"""The configuration of a run: its options, what a command line says of them, and where each value comes from."""
