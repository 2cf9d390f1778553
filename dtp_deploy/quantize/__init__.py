"""Lower precision, written into the model file."""
