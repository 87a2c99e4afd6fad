"""Statistics: histogram, quantiles with intervals, the leak verdict."""
