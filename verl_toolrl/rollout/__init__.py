"""The loop over turns: a model writes, its calls are answered, it goes on, until one of them ends it.

    chat = ChatTokens(tokenizer)
    async with toolbox.session("t-1") as session:
        rollout = await run_dialogue(
            engine=engine, chat=chat, dialogue=make_dialogue("native"), session=session,
            messages=[{"role": "user", "content": "..."}], limits=TurnLimits(response_tokens=2048),
        )
    rollout.response_ids, rollout.response_mask, rollout.trajectory.steps[0].span

    engine.py     what an engine must offer: tokens in, tokens and log-probabilities out
    scripted.py   an engine that plays given texts, for tests of tools, dialogues and rewards without a model
    chat.py       the model's chat template as tokens, extended turn by turn and never rendered anew
    dialogue.py   three forms: ToolRL's tags, the template's function calling, ReAct
    loop.py       one trajectory
    settings.py   what a recipe says about all that
    audit.py      what must hold of every finished trajectory
    journal.py    trajectories as JSON lines, rotated and bounded
    wire.py       trajectories as JSON text, whatever a model wrote into its calls
    health.py     what a batch of trajectories looks like, and thresholds that raise an alarm

None of it knows verl; `verl_toolrl.integrations.rollout_loops` is the adapter.
"""

from verl_toolrl.rollout.chat import ChatTokens
from verl_toolrl.rollout.dialogue import DIALOGUES, Dialogue, make_dialogue
from verl_toolrl.rollout.engine import Engine, Generation
from verl_toolrl.rollout.loop import Rollout, SessionLost, TurnLimits, run_dialogue
from verl_toolrl.rollout.scripted import ScriptedEngine

__all__ = [
    "DIALOGUES",
    "ChatTokens",
    "Dialogue",
    "Engine",
    "Generation",
    "Rollout",
    "ScriptedEngine",
    "SessionLost",
    "TurnLimits",
    "make_dialogue",
    "run_dialogue",
]
