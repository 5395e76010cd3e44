"""Where pictures are taken from where nothing else is said, without loading torch."""

from __future__ import annotations

#: Distance of the camera from the origin, scene units, and its vertical field of view, degrees.
DISTANCE, FOV_Y_DEG = 3.2, 40.0
