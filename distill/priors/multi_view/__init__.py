"""Multi-view priors: several views of one object denoised together, each told its camera."""
