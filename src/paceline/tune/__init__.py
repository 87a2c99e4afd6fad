"""The closed loop: measure, explain, project, apply, measure again, and hold the two together."""
