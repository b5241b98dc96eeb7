"""Short Python functions over the words of the embedded world: its code domain.

No section of the paper; it stands in for SAEBench's code data set. Offers `draw_function`.
"""

import random

from .grammar import load_concepts, load_lexicon

FIELDS = ("weight", "price", "size", "age", "speed", "length")

TEMPLATES = (
    '''def total_{field}({things}):
    """Return the sum of {field} over all {things}."""
    total = 0
    for {thing} in {things}:
        total += {thing}.{field}
    return total
''',
    """def find_{thing}({things}, name):
    for {thing} in {things}:
        if {thing}.name == name:
            return {thing}
    return None
""",
    '''def count_{things}({things}, limit={number}):
    """Count the {things} whose {field} is above the limit."""
    return sum(1 for {thing} in {things} if {thing}.{field} > limit)
''',
    """class {Thing}:
    def __init__(self, name, {field}={number}):
        self.name = name
        self.{field} = {field}

    def is_{adjective}(self):
        return self.{field} > {number}
""",
    """def sort_{things}({things}):
    return sorted({things}, key=lambda {thing}: {thing}.{field}, reverse=True)
""",
    """def {verb}_all({things}, {person}):
    result = []
    for {thing} in {things}:
        if {thing}.{field} < {number}:
            continue
        result.append({person}.{verb}({thing}))
    return result
""",
    """def average_{field}({things}):
    if not {things}:
        raise ValueError("no {things} given")
    return sum({thing}.{field} for {thing} in {things}) / len({things})
""",
    """{things} = {{"{thing}": {number}, "{other}": {number2}}}
for name, {field} in {things}.items():
    print(f"{{name}}: {{{field}}}")
""",
)


def draw_function(rng: random.Random, topic: str) -> str:
    """Draw one function, class or loop whose names are words of `topic`."""
    lex, words = load_lexicon("en"), load_concepts()["topics"][topic]
    thing, other = rng.sample(words["objects"], 2)
    singular, plural = (lex.nouns[thing][number] for number in ("sg", "pl"))
    return rng.choice(TEMPLATES).format(
        thing=singular,
        things=plural if plural != singular else f"all_{plural}",
        Thing=singular.capitalize(),
        other=lex.nouns[other]["sg"],
        person=lex.nouns[rng.choice(words["agents"])]["sg"],
        verb=lex.verbs[rng.choice(list(words["verbs"]))]["base"].split()[0],
        adjective=rng.choice(load_concepts()["adjectives"]["attribute"]),
        field=rng.choice(FIELDS),
        number=rng.randrange(2, 100),
        number2=rng.randrange(2, 100),
    )
