"""What a board needs to measure a model: one folder to copy there, with a script to run and instructions to read."""
