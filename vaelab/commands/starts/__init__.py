"""What `vaelab new` writes: a working example of each kind, with its option and its test, for the user to change."""
