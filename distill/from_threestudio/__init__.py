"""Commands for threestudio's configurations: ``python -m distill.from_threestudio config.yaml``."""
