"""Rows made from the schemas of tools: questions whose right calls are known because both come from one draw.

    spec = WorldSpec(toolset="quickstart", seed=1, train=512, sft=64, seen=256, unseen=64, no_tool=64)
    world = make_world(spec)
    world.splits["train"]                # rows in verl's RL schema; "sft" holds rows of verl's SFT trainer
    write_world(world, Path("data"))     # train.parquet, sft.parquet, seen.parquet, unseen.parquet, no_tool.parquet

What is here, in the order in which a row comes about:

    pools.py      words that values are taken from          values.py   values from a JSON Schema
    asks.py       one need and the call that serves it      phrases/    how people say it, by hand, a file a domain
    written.py    needs in those words                      generic.py  needs in the words of a schema
    subjects.py   either of them, for a tool                talk.py     talk that needs no tool, wishes beyond any tool
    tasks.py      from needs to a whole question            offers.py   which tools stand on the list
    prompts.py    from a question to messages               history.py  earlier turns of the dialogue
    splits.py     sets of rows that share no question       spec.py     what to make
    rows.py       from all that to a row                    make.py     all rows
    files.py      rows to parquet, and what was made

Rows depend on the seed and the tool set alone. Nothing of anybody's data set is in them.
"""

from verl_toolrl.data.world.files import write_world
from verl_toolrl.data.world.make import World, make_world
from verl_toolrl.data.world.spec import WorldSpec
from verl_toolrl.data.world.splits import HELD_OUT, refuse_leaks
from verl_toolrl.data.world.tasks import Kind

__all__ = ["HELD_OUT", "Kind", "World", "WorldSpec", "make_world", "refuse_leaks", "write_world"]
