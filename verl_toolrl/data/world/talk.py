"""Talk that needs no tool: small talk, questions whose answer stands in the text, wishes that no tool grants."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from verl_toolrl.data.world.pools import CITIES, SPEAKERS

__all__ = ["Wish", "answer_in_text", "small_talk", "some_wish"]

_SMALL_TALK = (
    ("Hello, I am {who}. How are you?", "Hello {who}, I am fine. What can I do for you?"),
    ("Hi! My name is {who} and I only wanted to say hello.", "Hello {who}, nice to meet you."),
    ("Thank you, that was all for today. Greetings, {who}", "You are welcome, {who}. Goodbye!"),
    ("Good night! {who} and I are going to bed now.", "Good night to you and {who}!"),
    ("I am in a good mood today, and so is {who}.", "That is good to hear."),
    ("{who} says you are very helpful. I agree!", "Thank you both, that is kind."),
    ("Sorry, I was thinking of {who}. I have no question right now.", "No problem. I am here when you need me."),
    ("{who} and I had a lovely walk in {city}.", "That sounds like a lovely day."),
    ("I miss {city} a little. {who} does, too.", "I understand. Good memories stay."),
    ("Good morning from {city}! {who} sends greetings.", "Good morning! Greetings to {who}."),
    ("Do not do anything yet, I have to ask {who} first.", "All right, I will wait."),
    ("Wait a moment, {who} is at the door.", "Of course, take your time."),
)

_ANIMALS = ("cat", "dog", "parrot", "rabbit", "turtle", "goat", "pony", "hamster")
_COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "purple")
_PLACES = ("kitchen", "garden", "cellar", "attic", "garage", "hall", "library", "barn")
_THINGS = ("bicycle", "coat", "guitar", "suitcase", "tent", "kite", "drum", "bag")
_DISHES = ("soup", "rice", "pasta", "salad", "fish", "pancakes", "beans", "pizza")


def small_talk(draw: Random) -> tuple[str, str]:
    """Return something said that asks for nothing, and a reply."""
    text, answer = draw.choice(_SMALL_TALK)
    names = {"who": draw.choice(SPEAKERS), "city": draw.choice(CITIES)}
    return text.format(**names), answer.format(**names)


def answer_in_text(draw: Random) -> tuple[str, str]:
    """Return a short text with a question, and the answer, which stands in the text."""
    people = draw.sample(SPEAKERS, 3)
    words, fact, question, answer = draw.choice(
        (
            (_ANIMALS, "{who} has a {word}", "Which animal does {who} have?", "{who} has a {word}."),
            (_COLOURS, "{who} wears a {word} hat", "Which colour does {who} wear?", "{who} wears {word}."),
            (_PLACES, "{who} waits in the {word}", "Where does {who} wait?", "{who} waits in the {word}."),
            (_THINGS, "{who} carries a {word}", "What does {who} carry?", "{who} carries a {word}."),
            (_DISHES, "{who} eats {word}", "What does {who} eat?", "{who} eats {word}."),
            (CITIES, "{who} dreams of {word}", "Which city does {who} dream of?", "{who} dreams of {word}."),
        )
    )
    found = draw.sample(words, 3)
    text = ", ".join(fact.format(who=who, word=word) for who, word in zip(people, found, strict=True))
    index = draw.randrange(3)
    slots = {"who": people[index], "word": found[index]}
    return f"{text}. {question.format(**slots)}", answer.format(**slots)


@dataclass(frozen=True)
class Wish:
    """Something that calls for a tool of a kind that hardly any set has."""

    text: str
    words: tuple[str, ...]
    """Words that a tool which could do it would use of itself; then the wish is not made."""


_WISHES = (
    Wish("Play the newest song of {who} from {city}.", ("song", "music", "play", "audio")),
    Wish("Book a flight to {city} for {who}.", ("flight", "travel", "book", "ticket")),
    Wish("Order a pizza for {who} and send it to {city}.", ("order", "food", "pizza", "deliver")),
    Wish("Switch off the lamp in the room of {who}.", ("switch", "light", "smart", "device")),
    Wish("Take a photo of {who} and me in {city}.", ("photo", "camera", "image", "picture")),
    Wish("Call a taxi that takes {who} to {city}.", ("taxi", "ride", "car ", "call")),
    Wish("Will it rain in {city} when {who} arrives?", ("weather", "rain", "forecast")),
    Wish("Send {who} a text message: I am in {city}.", ("message", "sms", "mail", "send", "phone", "contact")),
    Wish("Print my letter to {who} in {city}.", ("print", "letter", "document")),
    Wish("Translate the letter of {who} from {city} into Finnish.", ("translat", "language")),
    Wish("Draw a picture of {city} for {who}.", ("draw", "image", "picture", "paint")),
    Wish("Turn the heating up before {who} comes home from {city}.", ("heat", "temperature", "thermostat", "smart")),
    Wish(
        "Wake me at six, the train of {who} to {city} leaves early.",
        ("alarm", "wake", "remind", "timer", "appointment"),
    ),
    Wish("Unlock the car of {who} in {city}.", ("unlock", "car ", "vehicle", "door")),
)


def some_wish(draw: Random, described: str) -> str | None:
    """Return a wish that none of the tools can grant, or None if there is none left.

    Args:
        draw: Source of chance.
        described: Names and descriptions of the tools on the list, in small letters.
    """
    possible = [wish for wish in _WISHES if not any(word in described for word in wish.words)]
    names = {"who": draw.choice(SPEAKERS), "city": draw.choice(CITIES)}
    return draw.choice(possible).text.format(**names) if possible else None
