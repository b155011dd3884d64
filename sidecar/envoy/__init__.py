"""Adapters between Envoy's protobuf messages and the core's types."""
