"""Novel views of an object from one picture: Zero-1-to-3 and Efficient-3DiM."""
