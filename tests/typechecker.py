"""beartype as the tests use it: an int is accepted where a float is expected, as Python's own type checkers do."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
