"""Commands that look at one trained run, or work with its model."""
