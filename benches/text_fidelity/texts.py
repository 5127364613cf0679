"""Five kinds of text, written for this bench: about 300 tokens each."""

from __future__ import annotations

import json
import random

PROSE = (
    "The old lighthouse keeper had not spoken to another person for eleven days when the boat finally "
    "came. He watched it from the gallery, a small grey shape that rose and fell with the swell, and he "
    "thought of the letters it might carry. In the first year of his service he had counted the days "
    "between boats; in the second he had counted the weeks. Now he counted nothing. The lamp had to be "
    "trimmed at dusk and again at midnight, the brass had to be polished, and the log had to be written "
    "in a clear hand. When the boat was close enough to hail, he saw that there was a woman in the stern, "
    "wrapped in a dark coat, holding a box on her knees as though it were a child. Economists have long "
    "argued about whether minimum wages reduce employment. The simplest model of a competitive market "
    "predicts that they do, but empirical studies of neighbouring counties have often found small "
    "effects, perhaps because employers have some power to set wages, or because better paid workers stay "
    "longer in their jobs. The question is not settled, and the answer probably depends on the level of "
    "the wage, the state of the local economy and the horizon over which the effects are measured."
)
GERMAN = (
    "Am Morgen des dritten Tages lag der Nebel noch immer über dem Tal, und die Bauern standen vor ihren "
    "Häusern und warteten. Der Bürgermeister hatte versprochen, dass die Straße bis zum Herbst fertig "
    "werde, aber niemand glaubte ihm mehr. Die Brücke über den Fluss war im Frühjahr vom Hochwasser "
    "fortgerissen worden, und seither musste man einen Umweg von zwanzig Kilometern machen, wenn man in "
    "die Stadt wollte. In der Wirtschaftswissenschaft versteht man unter Inflation einen anhaltenden "
    "Anstieg des allgemeinen Preisniveaus. Sie wird meist anhand eines Verbraucherpreisindexes gemessen, "
    "der die Preise eines festgelegten Warenkorbes abbildet. Ursachen können eine zu stark wachsende "
    "Geldmenge, steigende Kosten der Produktion oder eine Nachfrage sein, die das Angebot übersteigt. Die "
    "Zentralbank versucht, durch Änderungen des Leitzinses gegenzusteuern."
)
CHINESE = (
    "清晨的雾气还没有散去,村子里的人们已经起来了。老人坐在门口,看着远处的山,慢慢地喝着茶。孩子们背着书"
    "包,沿着小路走向学校。今天是新学期的第一天,大家都很高兴。经济学家认为,通货膨胀是指物价水平在一段时"
    "间内持续上升的现象。中央银行通常通过调整利率来控制通货膨胀。人工智能的发展正在改变许多行业的工作方式"
    ",但是它也带来了新的问题和挑战。"
)
CODE = '''from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(order=True)
class Entry:
    """A task in the queue; equal priorities keep the order of their insertion."""

    priority: float
    number: int
    task: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)


class TaskQueue:
    """Runs tasks by priority. Cancelled tasks stay in the heap until they would run."""

    def __init__(self, tasks: Iterable[tuple[float, Callable[[], None]]] = ()) -> None:
        self._counter = itertools.count()
        self._heap = [Entry(priority, next(self._counter), task) for priority, task in tasks]
        heapq.heapify(self._heap)

    def add(self, priority: float, task: Callable[[], None]) -> Entry:
        if priority != priority:
            raise ValueError("priority is NaN")
        entry = Entry(priority, next(self._counter), task)
        heapq.heappush(self._heap, entry)
        return entry

    def cancel(self, entry: Entry) -> bool:
        """Returns whether the task had not run yet."""
        waiting = entry in self._heap and not entry.cancelled
        entry.cancelled = True
        return waiting

    def run(self, limit: int | None = None) -> int:
        done = 0
        while self._heap and (limit is None or done < limit):
            entry = heapq.heappop(self._heap)
            if entry.cancelled:
                continue
            entry.task()
            done += 1
        return done
'''


def records() -> str:
    """JSON as services return it."""
    items = [
        ("Garden hose", ["garden", "water"], "Springfield"),
        ("Desk lamp", ["office", "light"], "Portland"),
        ("Steel bottle", ["outdoor"], "Denver"),
        ("Notebook", ["paper", "office", "school"], "Austin"),
        ("Running shoes", ["sport"], "Boston"),
        ("Keyboard", ["computer", "office"], "Seattle"),
    ]
    rows = [
        {
            "id": 1000 + i,
            "name": name,
            "price": round(3.17 * i + 0.99, 2),
            "tags": tags,
            "address": {"street": f"{i * 7} Main St", "city": city, "zip": f"{10000 + i * 37}"},
            "active": i % 2 == 0,
        }
        for i, (name, tags, city) in enumerate(items)
    ]
    return json.dumps(rows, indent=2)


def random_words(count: int = 200) -> str:
    """Words of the prose in a random order: text as no model has seen it."""
    words = PROSE.split()
    return " ".join(random.Random(7).choices(words, k=count))


TEXTS = {
    "prose": PROSE,
    "code": CODE,
    "JSON": records(),
    "German": GERMAN,
    "Chinese": CHINESE,
    "random words": random_words(),
}
