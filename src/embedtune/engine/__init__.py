"""Where work is done: in this process, in several of this machine, on a Ray cluster.

An engine knows nothing of texts or models. It is given a way to make a worker, which may be dear (it loads a model),
and things for workers to do; or a function that a group of processes calls together, as training does.
"""

from embedtune.engine.base import Engine, LocalEngine
from embedtune.engine.choice import ENGINES, open_engine

__all__ = ["ENGINES", "Engine", "LocalEngine", "open_engine"]
