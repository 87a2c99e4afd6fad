"""The rules: one file each, each a plain function from a View to findings."""
