"""English statements with a binary sentiment, generated from word lists: data that needs no download.

A statement is an opener, a core sentence, and sometimes a closing sentence, all about one subject. Most cores express
one judgement; some first concede the opposite ("The staff was rude, but ..."), so that no single word decides.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SENTIMENTS = ("positive", "negative")


@dataclass(frozen=True)
class Statement:
    """One statement and its sentiment, ``positive`` or ``negative``."""

    text: str
    sentiment: str


SUBJECTS: dict[str, tuple[str, ...]] = {
    "film": ("film", "series", "documentary", "comedy", "thriller", "finale", "remake"),
    "food": ("restaurant", "bakery", "pizza place", "breakfast", "dinner", "food truck", "noodle bar"),
    "stay": ("hotel", "hostel", "cabin", "apartment", "guest house", "campsite", "resort"),
    "gadget": ("phone", "laptop", "camera", "headset", "tablet", "printer", "keyboard"),
    "book": ("novel", "biography", "cookbook", "sequel", "short story", "audiobook", "travel guide"),
    "show": ("concert", "festival", "play", "musical", "exhibition", "opera", "puppet show"),
    "trip": ("flight", "train ride", "ferry", "bus tour", "cruise", "road trip", "city walk"),
    "course": ("course", "workshop", "lecture", "seminar", "yoga class", "language class", "tutorial"),
}

ASPECTS: dict[str, tuple[str, ...]] = {
    "film": ("acting", "plot", "music", "ending", "dialogue", "editing"),
    "food": ("service", "menu", "coffee", "soup", "dessert", "bread"),
    "stay": ("staff", "room", "bed", "view", "bathroom", "location"),
    "gadget": ("battery", "screen", "software", "sound", "design", "price"),
    "book": ("story", "writing", "opening chapter", "ending", "translation", "pacing"),
    "show": ("sound", "stage", "cast", "lighting", "first half", "venue"),
    "trip": ("crew", "seat", "schedule", "guide", "view", "boarding"),
    "course": ("teacher", "material", "pace", "homework", "feedback", "group"),
}

ADJECTIVES: dict[str, tuple[str, ...]] = {
    "positive": (
        *("wonderful", "excellent", "delightful", "superb", "charming", "brilliant", "fantastic", "lovely", "amazing"),
        *("outstanding", "enjoyable", "perfect", "impressive", "great", "pleasant", "beautiful", "remarkable", "good"),
        *("splendid", "marvellous", "flawless", "inspiring", "refreshing", "memorable", "magnificent", "satisfying"),
    ),
    "negative": (
        *("terrible", "awful", "dreadful", "boring", "horrible", "disappointing", "mediocre", "poor", "annoying"),
        *("appalling", "tedious", "unpleasant", "miserable", "dull", "frustrating", "ugly", "pathetic", "bad"),
        *("lousy", "abysmal", "broken", "depressing", "exhausting", "forgettable", "atrocious", "irritating"),
    ),
}

VERBS: dict[str, tuple[str, ...]] = {
    "positive": ("loved", "enjoyed", "admired", "adored", "recommend", "treasured", "praised", "appreciated"),
    "negative": ("hated", "regretted", "disliked", "despised", "loathed", "complained about", "resented", "returned"),
}

CLOSERS: dict[str, tuple[str, ...]] = {
    "positive": (
        *("I would go again.", "It made my day.", "Worth every cent.", "I keep smiling.", "I want more of it."),
        *(
            "We could not be happier.",
            "Five stars from me.",
            "It beat all my hopes.",
            "I told all my friends to try it.",
        ),
    ),
    "negative": (
        *("I would not go again.", "It ruined my day.", "What a waste of money.", "I am still angry.", "Never again."),
        *(
            "We could not be sadder.",
            "One star from me.",
            "It failed all my hopes.",
            "I told all my friends to avoid it.",
        ),
    ),
}

OPENERS = (
    *("", "", "", "", "Honestly, ", "In the end, ", "Last week, ", "To be fair, ", "For once, ", "As a family, "),
    *("After all these years, ", "On Sunday, ", "Frankly, ", "On our holiday, ", "As usual, ", "By and large, "),
)

DEGREES = ("", "", "really ", "quite ", "simply ", "so ", "truly ", "rather ")

CORES = (
    "the {subject} was {degree}{same}.",
    "the {aspect} of the {subject} was {degree}{same}.",
    "this {subject} is {degree}{same}.",
    "I {verb} the {subject}.",
    "we {verb} the {aspect} of that {subject}.",
    "I found the {subject} {degree}{same}.",
    "the {subject} had a {same} {aspect}.",
    "everybody said that the {subject} was {same}.",
    "the {subject} was {degree}{same} and the {aspect} was {same_too}.",
    "my sister {verb} every minute of the {subject}.",
    "the {aspect} was {opposite}, but the {subject} was {degree}{same}.",
    "I expected a {opposite} {subject}, but it was {degree}{same}.",
    "despite its {opposite} {aspect}, the {subject} was {same}.",
)


def generate_statements(count: int, seed: int = 0) -> list[Statement]:
    """``count`` distinct statements, sentiments alternating. The same seed gives the same statements in the same
    order, and a larger count only adds to the end."""
    draw = random.Random(seed)
    found: dict[str, Statement] = {}
    while len(found) < count:
        statement = _statement(draw, SENTIMENTS[len(found) % 2])
        found.setdefault(statement.text, statement)
    return list(found.values())


def _statement(draw: random.Random, sentiment: str) -> Statement:
    other = SENTIMENTS[1 - SENTIMENTS.index(sentiment)]
    domain = draw.choice(list(SUBJECTS))
    core = draw.choice(CORES).format(
        subject=draw.choice(SUBJECTS[domain]),
        aspect=draw.choice(ASPECTS[domain]),
        degree=draw.choice(DEGREES),
        same=draw.choice(ADJECTIVES[sentiment]),
        same_too=draw.choice(ADJECTIVES[sentiment]),
        opposite=draw.choice(ADJECTIVES[other]),
        verb=draw.choice(VERBS[sentiment]),
    )
    sentence = _article(draw.choice(OPENERS) + core)
    closer = f" {draw.choice(CLOSERS[sentiment])}" if draw.random() < 0.3 else ""
    return Statement(sentence[0].upper() + sentence[1:] + closer, sentiment)


def _article(sentence: str) -> str:
    """``a`` becomes ``an`` before a vowel."""
    words = sentence.split(" ")
    for position, following in enumerate(words[1:]):
        if words[position] == "a" and following[:1].lower() in set("aeiou"):
            words[position] = "an"
    return " ".join(words)
