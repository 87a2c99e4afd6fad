"""Imported by Python at start-up because `paceline record` put this folder first on PYTHONPATH.

Starts the recorder, then hands over to the environment's own sitecustomize. The service may run on an interpreter
that has no Paceline: then it is borrowed from PACELINE_PACKAGES, and the worst outcome is one warning.
"""

# Pathlib is not imported yet at this point of start-up, and would cost every process 5 ms.
# ruff: noqa: PTH100, PTH120
import importlib.machinery
import importlib.util
import os
import sys


def _borrow(name: str) -> None:
    """Import a package from Paceline's own installation, without putting that on the service's path."""
    if importlib.util.find_spec(name) is not None:
        return
    path = os.environ.get("PACELINE_PACKAGES", "").split(os.pathsep)
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module named {name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _start() -> None:
    try:
        _borrow("msgspec")
        _borrow("paceline")
        from paceline.record import bootstrap

        bootstrap.start()
    except Exception as error:  # noqa: BLE001 the service must start, whatever is wrong with us
        sys.stderr.write(
            f"paceline: this process is not recorded ({type(error).__name__}: {error}). "
            f"Install paceline for {sys.executable}\n"
        )


def _chain() -> None:
    """Run the sitecustomize that ours hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    path = [p for p in sys.path if os.path.abspath(p) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


if os.environ.get("PACELINE_RUN"):
    _start()
_chain()
