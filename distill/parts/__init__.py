"""What the library asks of its parts: of their signatures, when they are registered, before a run trains, and in each step."""
