"""Novel-view models: an image-conditioned prior and its parts."""
