"""The embedded world, the prior trained on it, and the judge that measures results."""
