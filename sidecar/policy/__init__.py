"""The policy: written (document) -> validated -> compiled -> swapped (holder)."""
