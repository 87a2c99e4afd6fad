"""Room trace."""
