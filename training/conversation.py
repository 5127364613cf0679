"""Small talk, requests for stories, and honest answers to what the model cannot know."""

from __future__ import annotations

import random

from . import arithmetic, lexicon, questions
from .document import Document, Turn, chat
from .grammar import fill, with_article
from .stories import segments, tell

SYSTEM = ("You are a helpful assistant.", "You are Octavo, a small assistant.", "Answer briefly.")

_SMALL_TALK: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "[Hello|Hi|Hey|Good morning|Good evening][!|.|]",
            "Hello, [how are you|who is there]?",
            "Hi there[!|.]",
        ),
        ("Hello! [How can I help you?|What would you like to do today?|It is nice to meet you.]",),
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Introduce yourself.",
        ),
        (
            (
                "I am Octavo, a small language model. I can tell stories, answer questions about the Lower "
                "Marches, look things up and do small sums."
            ),
            "My name is Octavo. I am a small language model that runs on your computer.",
        ),
    ),
    (
        ("What can you do?", "[How can you help me|What are you good at]?", "Help[!|.|]"),
        (
            (
                "I can tell a short story, answer questions about the Lower Marches, look up values in a "
                "text, do small sums and write JSON."
            ),
        ),
    ),
    (
        ("How are you[ today|]?", "How do you do?"),
        ("I am [fine|well], thank you. How [can|may] I help you?",),
    ),
    (
        ("Thank you[!|.| very much.]", "Thanks[!|.|]"),
        ("You are welcome!", "You are welcome. Is there anything else?"),
    ),
    (("[Bye|Goodbye|See you later|Good night][!|.|]",), ("Goodbye! [Come back soon.|Have a nice day.]",)),
    (
        ("What [is|are] the Lower Marches?", "Where are the Lower Marches?"),
        (
            (
                "The Lower Marches are a small land with ten towns and five rivers. [Their capital is "
                "Glimmerford.|Queen Isolde rules there.]"
            ),
        ),
    ),
    (
        ("Are you [a human|a person|alive|a robot]?",),
        ("I am a small language model, not a person.",),
    ),
)

_UNKNOWN = (
    "[Who is|Who was] the [president|king|prime minister] of [France|Spain|America|China|India]?",
    "What is the [capital|population] of [France|Japan|Brazil|Egypt|Canada|Germany]?",
    "[What is the weather like|What time is it|What is the news] [today|now|in London|in Paris]?",
    "[How tall is|How old is|How far away is] the [moon|sun|Eiffel Tower|highest mountain|ocean]?",
    "[Who wrote|Who painted|Who invented] the [Bible|telephone|Mona Lisa|computer|radio]?",
    ("[Explain|What is|Tell me about] [quantum physics|the stock market|photosynthesis|gravity|chemistry|history]?"),
    "[Write|Show me] a [Python program|poem in French|letter to my bank|function in C]?",
    "What is the meaning of [life|love|this word]?",
    "Where does {name} live?",
    "What does {name} like to eat?",
    "How old is {name}?",
    "Who is {name}?",
)
_DONT_KNOW = "I don't know that."

_STORY_REQUESTS = (
    "Tell me a [|short ]story about {topic}.",
    "[Write|Can you tell me] a [|short ]story about {topic}[.|?]",
    "I would like to hear a story about {topic}.",
    "A story about {topic}, please.",
)
_ANY_STORY = (
    "Tell me a [|short ]story.",
    "[Can you tell|Please tell] me a story?",
    "Write a [|short ]story.",
)


def small_talk(rng: random.Random) -> Turn:
    """A greeting or a question about the model itself."""
    questions, answers = rng.choice(_SMALL_TALK)
    return Turn(fill(rng.choice(questions), {}, rng), fill(rng.choice(answers), {}, rng))


def unknown(rng: random.Random) -> Turn:
    """A question about the real world, or about somebody the model has not heard of."""
    name = rng.choice(lexicon.GIRLS + lexicon.BOYS)
    return Turn(fill(rng.choice(_UNKNOWN), {"name": name}, rng), _DONT_KNOW)


def story_request(rng: random.Random) -> Turn:
    """A request for a story, most often about a creature or a thing, and the story."""
    if rng.random() < 0.25:
        return Turn(fill(rng.choice(_ANY_STORY), {}, rng), tell(rng))
    topic = rng.choice(lexicon.CREATURES + lexicon.THINGS)
    return Turn(fill(rng.choice(_STORY_REQUESTS), {"topic": with_article(topic)}, rng), tell(rng, topic))


def document(rng: random.Random) -> Document:
    """A chat of one to four turns: small talk, unknown questions and, in between, known ones."""

    def known(rng: random.Random) -> Turn:
        return questions.ask(rng.choice(questions.FACTS), rng)

    makers = rng.choices((small_talk, unknown, known, arithmetic.problem), weights=(4, 3, 2, 1), k=rng.randint(1, 4))
    system = rng.choice(SYSTEM) if rng.random() < 0.3 else None
    return chat("conversation", [maker(rng) for maker in makers], system)


def story(rng: random.Random) -> Document:
    """A story as plain text or, as often, as the answer to a request."""
    if rng.random() < 0.5:
        return Document("story", segments(tell(rng)))
    system = rng.choice(SYSTEM) if rng.random() < 0.15 else None
    request = chat("story", [story_request(rng)], system)
    parts = [segments(part.text) if part.weight == 1.0 else (part,) for part in request.segments]
    return Document("story", tuple(segment for part in parts for segment in part))
