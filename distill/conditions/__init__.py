"""What a prior is conditioned on: prompts, other views, a ControlNet's picture, an input picture."""
