"""`vaelab plan -m`: a sweeper that runs nothing."""
