"""What a finished scene leaves behind: meshes, pictures, a report page."""
