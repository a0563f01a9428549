"""What `verl-toolrl doctor` looks at: would training start on this machine, and if not, why.

    report.py    what is found, as plain values that turn into JSON
    packages.py  versions against what verl, the engine and we ask for; from metadata, nothing is imported
    machine.py   memory, disk, shared memory, accelerators
    examine.py   all of it together, and the verdict

`verl_toolrl.integrations.probe` runs beside it, in processes of its own: it imports verl or an engine and writes down
what it sees. Nothing is started: no Ray, no engine, no model.
"""
