"""Data sets of a user's own: a folder of images, arrays."""
