"""Several runs from one command: prompts, seeds, stages, sweeps, and generators for libraries of prompts."""
