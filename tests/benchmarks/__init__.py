"""What lens costs, in time and memory, beside what it cannot cost less than. See the README in this folder."""
