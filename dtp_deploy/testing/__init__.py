"""What a target's author, or our own tests, can check with."""
