"""Detections over HTTP: an image in, JSON out, requests batched while the network is busy."""

from anchorite.serve.app import ServeConfig, make_app
from anchorite.serve.batching import Batcher, BusyError

__all__ = ["Batcher", "BusyError", "ServeConfig", "make_app"]
