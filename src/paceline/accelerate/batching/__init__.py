"""Batching: concurrent embedding calls in one, and many calls through with a bound on how many at once."""
