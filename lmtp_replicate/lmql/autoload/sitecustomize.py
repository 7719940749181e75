"""Python imports this at its start when this folder is on PYTHONPATH: it installs the plug-in in
the processes that LMQL's command line starts, and then the sitecustomize that it hides, if any."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import lmtp_replicate  # noqa: F401 - importing it installs the plug-in

_elsewhere = [entry for entry in sys.path if Path(entry) != Path(__file__).parent]
_hidden = importlib.machinery.PathFinder.find_spec("sitecustomize", _elsewhere)
if _hidden is not None and _hidden.loader is not None:
    _hidden.loader.exec_module(importlib.util.module_from_spec(_hidden))
