"""Steering vectors of one model, carried to the other, and experiments that steer both (section 4, App. F and F.2).

`vectors` has Eqs. 8 and 9; `sweep` is the engine of the experiments on free responses, `languages` (Eq. 16),
`instructions` and `free_tasks`, which read `prompts` and judge by `verifiers`; `diagnostics` asks why instructions
transfer badly; `behaviours`, `choices` and `recipes` are the sister paper's experiment (arXiv 2506.00653).
"""
