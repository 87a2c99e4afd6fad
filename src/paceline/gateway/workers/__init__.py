"""Several serving processes below a parent that starts, watches and replaces them."""
