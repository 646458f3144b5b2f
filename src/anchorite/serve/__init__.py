"""Detections over HTTP: an image in, JSON out, requests batched while the network is busy."""

from anchorite.serve.app import ServeConfig, make_app

__all__ = ["ServeConfig", "make_app"]
