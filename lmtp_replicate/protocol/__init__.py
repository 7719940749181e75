"""See the README's list of layers."""
