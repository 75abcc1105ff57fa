"""Other libraries' functions, by pyrope: a module each, with the names, arguments and defaults of the original.

``import pyrope.compat.flash_attn as flash_attn`` runs code that was written for it.
"""
