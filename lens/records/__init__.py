"""What was computed once and is shipped: records of runs, and the lenses and models that came out of them. Data only."""
