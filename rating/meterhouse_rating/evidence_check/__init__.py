"""The verifier of evidence packs: Python's standard library alone, because a copy of it goes into every pack.

It shares no code with rating: it reads the price book, counts and multiplies in its own, simple way, so that a mistake
there is not made here again. Nothing here may import anything from outside of this folder but the standard library.
"""
