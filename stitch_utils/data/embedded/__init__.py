"""The embedded pair: its world (`grammar`, `frames`, `world`), its training (`train`), and what the book shows of it
(`portrait`)."""
