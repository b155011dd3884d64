"""`make run` and `make demo`: a real Envoy, issuer, upstream and Valkey around the sidecar."""
