"""gRPC servers behind one small interface (service.py)."""
