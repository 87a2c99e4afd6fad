"""Locust: its users drive load and Paceline records it, or its workers carry a Paceline scenario to other machines.

Of the modules here `session`, `seams`, `master` and `agent` run inside Locust's own processes, which gevent has
patched. Nothing else in Paceline imports them, and only they import locust.
"""
