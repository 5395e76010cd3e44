"""Export of a finished scene: meshes, pictures, a report page."""
