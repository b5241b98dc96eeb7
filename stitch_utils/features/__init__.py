"""Features that keep their role in the other model, and features that lose it (sections 5, 5.1 and 5.2, Apps. G to I).

`study` compares features with their twins (`attribution`, Eq. 10), beside nulls (`comparison`), and classes them
(`structure`) by versions of sentences (`rewriting`); `contexts` shows where a feature fires. `functional` follows
features that write where the unembedding does not read (`entropy`), and features that switch heads off (`attention`).
"""
