"""Steering vectors of one model, carried to the other, and experiments that steer both (section 4, App. F and F.2).

`vectors` makes, carries and applies every steering vector (Eqs. 8 and 9); `effects` judges a carried one by what it
does. `sweep` is the engine of the experiments on free responses, `languages` (Eq. 16), `instructions` and `free_tasks`,
which read `prompts` and judge by `verifiers`; `diagnostics` asks why instructions transfer badly. The sister paper's
experiments (arXiv 2506.00653) are in `multiple_choice`, whose questions are those of `behaviours`, and `map_recipes`,
an ablation of the map from A to B.
"""
