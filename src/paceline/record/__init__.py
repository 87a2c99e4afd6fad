"""Room record."""
