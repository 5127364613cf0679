"""Reading: facts about fresh invented towns and people in prose, then questions. Only the text has the answers."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .document import TURN_END, TURN_START, Document, Segment, Turn
from .grammar import fill
from .reading_facts import NAMED_RELATIONS, PERSON_RELATIONS, TOWN_RELATIONS, Relation, person, town

# The loss weight of the text and the questions: fresh names are noise. And that of the values in the answers.
READ_WEIGHT = 0.03
VALUE_WEIGHT = 3.0
_HEADS = ("", "", "", "Read this text.\n", "Here are some facts.\n", "Answer from this text.\n\n")
# Characters of a token of these texts, with the tokenizer of this folder.
CHARACTERS_PER_TOKEN = 2.7
_QUESTION_TOKENS = 45


@dataclass(frozen=True)
class Fact:
    """A relation of one thing and its value."""

    about: str
    relation: Relation
    value: str

    def form(self, template: str, rng: random.Random) -> str:
        """A statement or a question of this fact."""
        value = self.value
        slots = {"x": self.about, "v": value, "X": self.about, "V": value[0].upper() + value[1:]}
        text = fill(template, slots, rng)
        return text[0].upper() + text[1:]

    def answer(self) -> str:
        """The sentence that answers a question for it. The value ends it."""
        return self.form(self.relation.answer, random.Random(0))


def draw(rng: random.Random, count: int) -> list[Fact]:
    """``count`` facts or a few less, about fresh names; no name has two values of one relation."""
    per_name = rng.choice((1, 1, 2, 3, 5))
    facts: list[Fact] = []
    names: set[str] = set()
    while len(facts) < count:
        of_town = rng.random() < 0.6
        about = (town if of_town else person)(rng)
        if about in names:
            continue
        names.add(about)
        own = TOWN_RELATIONS + NAMED_RELATIONS if of_town else PERSON_RELATIONS
        # The relations that have forms of their own come more often than those that a noun names.
        weights = [3.0 if relation in TOWN_RELATIONS else 1.0 for relation in own]
        many = min(per_name, count - len(facts), len(own))
        chosen: list[Relation] = []
        while len(chosen) < many:
            relation = rng.choices(own, weights)[0]
            if relation not in chosen:
                chosen.append(relation)
        facts += [Fact(about, relation, relation.value(rng)) for relation in chosen]
    return facts


def tell(facts: list[Fact], rng: random.Random) -> str:
    """The text: by thing, with ``it`` and ``she`` for a name just given, or each sentence by itself in any order."""
    grouped = rng.random() < 0.5
    told = list(facts)
    if not grouped:
        rng.shuffle(told)
    sentences: list[str] = []
    last = ""
    for fact in told:
        later = grouped and fact.about == last and rng.random() < 0.7
        template = rng.choice(fact.relation.later if later else fact.relation.statements)
        sentences.append(fact.form(template, rng))
        last = fact.about
    if rng.random() < 0.3:
        return "\n".join(sentences)
    paragraphs: list[str] = []
    while sentences:
        size = rng.randint(2, 8)
        paragraphs.append(" ".join(sentences[:size]))
        sentences = sentences[size:]
    return "\n\n".join(paragraphs)


def ask(fact: Fact, rng: random.Random) -> Turn:
    """A question for the fact, and the sentence that answers it."""
    return Turn(fact.form(rng.choice(fact.relation.questions), rng), fact.answer())


def document(rng: random.Random, tokens: int) -> Document:
    """A text of at most about ``tokens`` tokens with its questions, as a chat or as plain lines."""
    return _review(rng, tokens) if rng.random() < 0.4 else _chat(rng, tokens)


def text_within(rng: random.Random, tokens: float) -> tuple[list[Fact], str]:
    """Facts and their text, of at most about so many tokens."""
    facts = draw(rng, max(1, int(tokens / 17)))
    while True:
        text = tell(facts, rng)
        if len(text) / CHARACTERS_PER_TOKEN <= tokens or len(facts) <= 1:
            return facts, text
        facts = facts[: max(1, len(facts) * 9 // 10)]


def _chat(rng: random.Random, tokens: int) -> Document:
    """The text as the system message, or before the first question; then questions as turns."""
    share = rng.uniform(0.3, 0.7)
    facts, text = text_within(rng, max(20.0, tokens * share))
    text = rng.choice(_HEADS) + text
    count = max(1, int((tokens - len(text) / CHARACTERS_PER_TOKEN) / _QUESTION_TOKENS))
    order = rng.sample(facts, len(facts)) * 3
    if rng.random() < 0.5:
        opening = Segment(f"{TURN_START}system\n{text}{TURN_END}\n{TURN_START}user\n", READ_WEIGHT)
    else:
        opening = Segment(f"{TURN_START}user\n{text}\n", READ_WEIGHT)
    segments = [opening]
    for index, fact in enumerate(order[: min(count, 2 * len(facts) + 1)]):
        start = f"{TURN_START}user\n" if index else ""
        head = f"{start}{ask(fact, rng).question}{TURN_END}\n{TURN_START}assistant\n"
        segments += [Segment(head, READ_WEIGHT), *answer_segments(fact), Segment("\n", 0.0)]
    return Document("reading", tuple(segments))


def answer_segments(fact: Fact) -> list[Segment]:
    """The answer and its end mark; the words of the value count more."""
    answer = fact.answer()
    # The space belongs to the value, as in the tokens.
    at = answer.rfind(fact.value) - 1
    value = answer[at : at + 1 + len(fact.value)]
    return [Segment(answer[:at]), Segment(value, VALUE_WEIGHT), Segment(f".{TURN_END}")]


def _review(rng: random.Random, tokens: int) -> Document:
    """The text, then its facts again as sentences that end with the value: dense practice in finding it."""
    facts, text = text_within(rng, max(20.0, tokens * rng.uniform(0.35, 0.6)))
    segments = [Segment(text + "\n\n", READ_WEIGHT)]
    room = tokens - len(text) / CHARACTERS_PER_TOKEN
    for fact in rng.sample(facts, len(facts)):
        line = fact.answer()
        room -= len(line) / CHARACTERS_PER_TOKEN + 1
        if room < 0:
            break
        head = line[: -len(fact.value) - 2]
        segments += [Segment(head, READ_WEIGHT), Segment(f" {fact.value}", VALUE_WEIGHT), Segment(".\n", READ_WEIGHT)]
    return Document("reading", tuple(segments))
