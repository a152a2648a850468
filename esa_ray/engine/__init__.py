"""The engine: the only folder that imports ray."""

import os

# Ray reads these when it is first imported, so they come before any module of this package.
# Tune's new console output can't be silenced; its loggers would write three files a trial.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# Tune answers Ctrl-C by returning as if all were done.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# A cluster of one's own would serve its metrics to the whole network; a standing one has its own settings.
os.environ.setdefault("RAY_enable_metrics_collection", "0")
