"""What every package may use: errors, types, checked configs, files, words, randomness, sums over processes."""
