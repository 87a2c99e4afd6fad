"""Room gateway."""
