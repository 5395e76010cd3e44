"""Timestep and camera samplers, and schedules."""

if __name__ == "samplers":
    raise ImportError("this folder is distill.samplers; write 'from distill import samplers' instead")
