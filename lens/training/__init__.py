"""Training of what cannot be fitted in closed form: one loop, its recipes, and the record of each run."""
