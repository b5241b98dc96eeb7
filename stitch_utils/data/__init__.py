"""Pairs and texts: which two models are stitched, on which text, and how it becomes rows of tokens.

Table 1 and App. A: `pairs` and `pairs/*.yml`, `sizes.yml`, `hub`, `documents`, `documentation`, `text_files`,
`text_formats`, `repeats`, `text`, `tokenizer`, `alignment`, where the tokens of two tokenizers meet; `embedded` holds
the offline pair and world. No equations.
"""
