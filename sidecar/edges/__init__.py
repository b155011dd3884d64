"""Everything that touches the world: one door each, one error type out."""
