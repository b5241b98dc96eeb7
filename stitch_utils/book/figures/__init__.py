"""The figures, a module for each family of chapters; `style.py` holds the look that they share.

No numbers are computed here: each function draws what it is given and returns the figure. An estimate is a tuple
(value, low, high), and a pair of braces shows how a mapping is keyed: {side: {condition: estimate}}.
"""
