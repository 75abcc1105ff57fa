"""As in Liger-Kernel."""
