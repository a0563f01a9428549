"""What `verl-toolrl doctor` looks at: would training start on this machine, and if not, why.

    report.py    what is found, as plain values that turn into JSON
    packages.py  versions against what verl, the engine and we ask for; from metadata, nothing is imported
    machine.py   memory, disk, shared memory, accelerators
    probe.py     runs in a process of its own: imports verl or an engine and writes down what it sees
    examine.py   all of it together, and the verdict

Nothing is started: no Ray, no engine, no model.
"""
