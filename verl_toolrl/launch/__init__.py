"""Start a training run, watch it, and leave nothing behind.

`verl-toolrl train` is a thin wrapper around `python -m verl.trainer.main_ppo`. What it adds lives here, and imports
neither verl nor ray nor torch:

    recipes.py    names and paths of recipes; composes one through Hydra without importing verl
    command.py    the command line that is run and shown
    preflight.py  what can be found out before the start: memory, ports, missing files
    runs.py       the run folder and its marker `run.json`
    processes.py  the processes of a run: finding them in /proc, ending them
    residue.py    what a killed run leaves besides processes: shared memory, scratch folder
    keeper.py     the process between launcher and trainer that ends the tree, whatever happens to the other two
    metrics.py    verl's metrics file and console lines, read while they grow
    progress.py   live display of a run
    failure.py    what went wrong, out of the log
    launcher.py   puts the above together
    stop.py       ends a run from outside

Three processes stand in a row: launcher (draws, takes Ctrl-C), keeper, trainer. The keeper ends the run when it is
told to, when the pipe from the launcher breaks, and when a vital process of the run dies; should the keeper itself be
killed, the launcher does its work. Every process of a run carries the variable `VERL_TOOLRL_RUN_ID`, by which
`verl-toolrl stop` finds what both of them missed.
"""
