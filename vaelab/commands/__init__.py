"""The commands of `vaelab`, a module each: wiring only."""
