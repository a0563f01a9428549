"""What Hydra accepts in a recipe and verl then ignores, or fails on after minutes.

    check.py      checks one recipe: composes it and runs the parts below
    tree.py       its keys against verl's composed tree and the fields of verl's dataclasses
    values.py     types of values, dead keys, closed sets of values
    names.py      names that nobody registered
    sizes.py      batch sizes that do not divide, lengths that the model cannot hold
    before_start.py  what `verl-toolrl train` asks: the check, and the first row of each data file
    dataclasses.py  the dataclasses that verl will build, built
    verl_base.py  verl's own configuration, which a recipe is compared with
    sources.py    which file sets a key, in which line, with which comment
    show.py       what a recipe changes against verl's defaults
    new.py        a commented start for a recipe of one's own

Written for verl 0.9.1: the tables of dead and moved keys name what was read there, and a test holds them against the
installed version.
"""
