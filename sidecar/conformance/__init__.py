"""Conformance kits: cases as data, and what drives any server with them."""
