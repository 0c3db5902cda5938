"""Named runs: longer measurements of the suite as commands, each with a record of where and how it was made."""
