"""Imported before torch, it gives a benchmark the threads of a run: no more than the quota of a container lets run."""

from fastcifar.run import threads

threads.limit("auto")
