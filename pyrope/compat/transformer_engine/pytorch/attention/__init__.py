"""As in TransformerEngine."""
