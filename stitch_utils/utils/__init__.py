"""Tools without mathematics of their own, but for the intervals of App. F.

`files` writes files whole or not at all, `yaml_files` reads what people write in YAML, `cache` keeps what takes long to
make in `artifacts/`, `arrays` reads a user's arrays, `stats` has bootstraps and Clopper-Pearson intervals, and
`progress` shows bars. `ranks` lets the processes that `torchrun` starts work as one.
"""
