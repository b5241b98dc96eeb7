"""The figures, a module for each family of chapters; `style.py` holds the look that they share.

No numbers are computed here: each function draws what it is given and returns the figure.
"""
