"""What the tests share: no test module imports another.

reference: float64 and mpmath; memory, places, blocks: memory of a device and tensors in it; ropes, objects: what is
called and with what; angles, rotations, cases: what must come out; pairwise: rows of options; refusals: texts.
"""
