"""Room accelerate."""
