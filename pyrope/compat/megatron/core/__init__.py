"""As in Megatron-LM."""
