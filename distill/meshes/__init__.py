"""Meshes of the user's own: read, coloured as their files say, and written again with a new texture."""
