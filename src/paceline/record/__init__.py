"""The light recorder: spans from inside a Python service, without touching its code.

`launcher` starts a command with `_site` first on PYTHONPATH; Python then imports `_site/sitecustomize.py`, which calls
`bootstrap.start()`; that makes a `recorder.Recorder` and patches libraries (`instrument/`) as the service imports them.
Everything that runs inside the service needs msgspec and the standard library only, and never raises into it.
"""
