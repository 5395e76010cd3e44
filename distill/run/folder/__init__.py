"""The folder of a run: what is written there, and finding, reading and exporting it again."""
