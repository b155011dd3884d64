"""Sidecar: authentication, authorization and rate limits for Envoy in one round trip."""

__version__ = "0.1.0"
