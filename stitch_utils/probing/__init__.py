"""Linear probes: yes-or-no questions about texts, and how they fare when they are carried to another model.

Section 4, App. E; Eq. 7 (`probes.choose_features`), Figs. 3a, 9 and 10 (`curves`). `probes` fits, carries, reads, saves
and judges probes; `tasks` has the labelled texts; `curves` is the experiment on both; `carried` compares maps by them.
"""
