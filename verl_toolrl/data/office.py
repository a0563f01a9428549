"""Questions about an office that only its tools can answer, four kinds in ten with two calls in a row.

    Who lives where, what is in stock, what is on a day:          one call
    Where does the person live whom I meet on 2026-03-17?         list_events, then find_contacts
    How many pieces of what arrives on 2026-03-17 are there?      list_events, then check_stock

The tools are the set `office` (tools/office.yaml). Every row brings its own stock, contacts and appointments, drawn by
chance, so that no answer can be learned by heart; the people and items of held-out rows stand in no row for training.
Prompts have 300 to 320 tokens of SmolLM2, an expert's trajectory adds 140 to 310. It is a task for small models and for
tests of the machinery, no benchmark.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_toolrl.errors import ConfigError, DatasetError, UnknownNameError
from verl_toolrl.rollout.dialogue import Dialogue, ToolRLDialogue
from verl_toolrl.toolbox import Toolbox
from verl_toolrl.trajectory import Outcome, ToolCall

__all__ = ["SPLITS", "SYSTEM", "TOOLSET", "Task", "expert_messages", "make_tasks", "messages", "rl_row"]

TOOLSET = "office"

SYSTEM = """You answer questions about an office. You know nothing of it by heart: look everything up.

**Available Tools**
{tools}

**Output Format**
To look something up:
<think> Your thoughts </think>
<tool_call>
{"name": "Tool name", "parameters": {"Parameter name": "Parameter content"}}
</tool_call>
The results come back in <obs>. To answer:
<think> Your thoughts </think>
<response> The answer and nothing else </response>"""
"""System message of every row; the dialogue puts the list of tools in place of `{tools}`."""

SPLITS = ("train", "held_out")

_FIRST = {
    "train": "Ada Bela Carla Dora Emil Farid Greta Hugo Ines Jonas Karim Lena Marta Nils Olga Pablo".split(),
    "held_out": "Anton Bruno Celia David Elsa Frida Goran Hanna Igor Julia Klara Leon".split(),
}
_LAST = {
    "train": "Moreau Novak Okoye Lind Sato Weber Rossi Silva Kumar Larsen Mendes Petrov Quinn Ramos Stein Toth".split(),
    "held_out": "Adler Berger Costa Dubois Eriksen Fischer Garcia Hansen Ivanov Jensen Keller Lopez".split(),
}
_COLOURS = "Red Blue Green Black White Yellow Brown Grey".split()
_THINGS = {
    "train": "lamp chair desk pencil folder kettle printer towel battery bottle mirror clock".split(),
    "held_out": "notebook umbrella candle basket blanket hammer carpet ladder".split(),
}
_CITIES = "Lyon Brno Lagos Kyoto Turin Oslo Lima Cairo Quito Hanoi Dakar Perth Leeds Busan Porto Graz Bern Riga".split()
_EACH = 4
"""People, items and appointments of an office."""


@dataclass(frozen=True)
class _Kind:
    """One kind of question."""

    questions: tuple[str, ...]
    calls: tuple[str, ...]
    """Tools in order; each but the first gets what the one before it found."""
    field: str
    """Field of the last answer that is asked for."""
    subject: str
    """What an appointment is about: a person or an item."""


_KINDS: dict[str, _Kind] = {
    "stock": _Kind(
        ("How many pieces of {item} are in stock?", "What is the number of {item} pieces in the stock?"),
        *(("check_stock",), "quantity", "item"),
    ),
    "price": _Kind(
        ("What does one {item} cost?", "What is the price of the {item}?"),
        *(("check_stock",), "price", "item"),
    ),
    "city": _Kind(
        ("In which city does {person} live?", "Where does {person} live?"),
        *(("find_contacts",), "city", "person"),
    ),
    "phone": _Kind(
        ("What is the phone number of {person}?", "How can I call {person}?"),
        *(("find_contacts",), "phone", "person"),
    ),
    "who": _Kind(
        ("Whom do I meet on {day}?", "With whom is my appointment on {day}?"),
        *(("list_events",), "title", "person"),
    ),
    "when": _Kind(
        ("At what time does my appointment on {day} begin?", "When do I start on {day}?"),
        *(("list_events",), "start", "person"),
    ),
    "city_of_who": _Kind(
        ("In which city does the person live whom I meet on {day}?", "Where does my guest of {day} live?"),
        *(("list_events", "find_contacts"), "city", "person"),
    ),
    "phone_of_who": _Kind(
        ("What is the phone number of the person whom I meet on {day}?", "How can I call my guest of {day}?"),
        *(("list_events", "find_contacts"), "phone", "person"),
    ),
    "stock_of_what": _Kind(
        (
            "How many pieces of the item that arrives on {day} are in stock?",
            "Something arrives on {day}. How many of it are in stock?",
        ),
        *(("list_events", "check_stock"), "quantity", "item"),
    ),
    "price_of_what": _Kind(
        ("What is the price of the item that arrives on {day}?", "Something arrives on {day}. What does one cost?"),
        *(("list_events", "check_stock"), "price", "item"),
    ),
}
_SUBJECTS = {"check_stock": "an item", "find_contacts": "a person", "list_events": "a day"}
"""What a tool is asked about."""
_PARAMETER = {"check_stock": "item", "find_contacts": "query", "list_events": "day"}


@dataclass(frozen=True)
class Task:
    """One question with the office that it is asked in."""

    kind: str
    """Kind of question; `city_of_who` needs two calls."""
    question: str
    answer: str
    """What the last tool will say."""
    calls: tuple[ToolCall, ...]
    """The calls that find it, in order."""
    state: Mapping[str, Mapping[str, Any]]
    """Initial state of the tools, by name."""


def make_tasks(count: int, *, seed: int, split: str = "train", kinds: Sequence[str] = ()) -> list[Task]:
    """Draw tasks; kinds in turn, so that any prefix of the list is balanced, and no question twice.

    Args:
        count: How many.
        seed: The same seed gives the same tasks.
        split: `train` or `held_out`: which people and items.
        kinds: Kinds of questions; all of them by default.

    Raises:
        UnknownNameError: If there is no such split or kind.
        ConfigError: If there are not as many different questions.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    for kind in kinds:
        if kind not in _KINDS:
            raise UnknownNameError("kind of question", kind, _KINDS)
    generator = random.Random(f"{split} {seed}")
    kinds = kinds or list(_KINDS)
    tasks: list[Task] = []
    asked: set[str] = set()
    misses = 0
    while len(tasks) < count:
        task = _task(kinds[len(tasks) % len(kinds)], split, generator)
        misses = misses + 1 if task.question in asked else 0
        if misses > 1000:
            raise ConfigError(f"office: there are {len(tasks)} different tasks in the split {split}, not {count}")
        if not misses:
            asked.add(task.question)
            tasks.append(task)
    return tasks


def _task(name: str, split: str, generator: random.Random) -> Task:
    kind = _KINDS[name]
    people = [
        {"name": f"{first} {last}", "phone": f"555 {generator.randint(0, 9999):04}", "city": city}
        for first, last, city in zip(
            *(generator.sample(words, _EACH) for words in (_FIRST[split], _LAST[split], _CITIES))
        )
    ]
    stock = {
        f"{colour} {thing}": {"quantity": generator.randint(100, 999), "price": generator.randint(3, 60) + 0.5}
        for colour, thing in zip(generator.sample(_COLOURS, _EACH), generator.sample(_THINGS[split], _EACH))
    }
    # The first person, item and day are what the question is about; an office lists them in another order.
    person, item = people[0], next(iter(stock))
    dates = [f"2026-{each // 28 + 1:02}-{each % 28 + 1:02}" for each in generator.sample(range(12 * 28), _EACH)]
    others = [people[1]["name"], *list(stock)[1:]]
    titles = [person["name"] if kind.subject == "person" else item, *generator.sample(others, _EACH - 1)]
    events = [_event(day, title, generator) for day, title in zip(dates, titles)]
    subject = {"day": dates[0], "person": person["name"], "item": item}
    calls = [
        ToolCall(tool, {_PARAMETER[tool]: subject["day" if tool == "list_events" else kind.subject]})
        for tool in kind.calls
    ]
    return Task(
        kind=name,
        question=generator.choice(kind.questions).format(**subject),
        answer=str({**events[0], **person, **stock[item]}[kind.field]),
        calls=tuple(calls),
        state={
            "Inventory": {"stock": dict(sorted(stock.items()))},
            "ContactBook": {"contacts": sorted(people, key=lambda each: each["name"])},
            "Agenda": {"events": sorted(events, key=lambda each: each["day"])},
        },
    )


def _event(day: str, title: str, generator: random.Random) -> dict[str, str]:
    start = generator.randint(8, 16)
    minutes = generator.choice(("00", "15", "30", "45"))
    return {"day": day, "start": f"{start:02}:{minutes}", "end": f"{start + 1:02}:{minutes}", "title": title}


def messages(task: Task) -> list[dict[str, str]]:
    """Return the prompt of a task in chat form."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task.question}]


def rl_row(task: Task, *, index: int, split: str) -> dict[str, Any]:
    """Return a task in verl's RL schema; the tools' state is JSON text, as our agent loops read it."""
    return {
        "data_source": f"office/{split}",
        "prompt": messages(task),
        "ability": "tool_use",
        "reward_model": {"style": "rule", "ground_truth": task.answer},
        "extra_info": {
            "index": index,
            "split": split,
            "kind": task.kind,
            "session": json.dumps({"state": task.state}),
        },
    }


async def expert_messages(task: Task, toolbox: Toolbox, dialogue: Dialogue | None = None) -> list[dict[str, Any]]:
    """Return the whole conversation of an expert, with what the tools really answered.

    Each of the expert's thoughts says what is asked for and what it is looked up with, so that which tool comes next,
    and whether one does, follows from words that stand there. A small model learns that from a few dozen conversations.
    From thoughts that only announce a call ("I look into the agenda.") it learned no second call.

    Args:
        task: What to solve.
        toolbox: The tool set `office`.
        dialogue: Form of the conversation; ToolRL's by default.

    Raises:
        DatasetError: If a call fails, or the last one does not answer the question.
    """
    dialogue = dialogue or ToolRLDialogue()
    kind = _KINDS[task.kind]
    wanted = f"I want the {kind.field} of {_SUBJECTS[kind.calls[-1]]}."
    async with toolbox.session(task.question, state=task.state) as session:
        conversation = dialogue.messages(messages(task), session.schemas)
        answer = ""
        for call in task.calls:
            result = await session.call(call)
            if result.outcome is not Outcome.OK:
                raise DatasetError(f"task {task.question!r}: {call.name} answers {result.content!r}")
            (subject,) = call.arguments.values()
            thought = f"{wanted} {subject} is {_SUBJECTS[call.name]}: {call.name}."
            text = dialogue.dialect.write([call], thought=thought)
            conversation.append({"role": "assistant", "content": text})
            conversation += dialogue.observe([call], [result], [])
            answer = result.content
    if task.answer not in answer:
        raise DatasetError(f"task {task.question!r}: {task.answer!r} does not stand in {answer!r}")
    text = dialogue.dialect.write([], thought=f"{wanted} It is {task.answer}.", response=task.answer)
    return [*conversation, {"role": "assistant", "content": text}]
