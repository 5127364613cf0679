"""Small sums: of single digits at once, of more digits with the steps written out."""

from __future__ import annotations

import random

from .document import Document, Turn, chat

# More digits are more ways to go wrong, so they get more practice.
_LARGEST = (9, 99, 99, 999, 999, 999)
# Sums of numbers below this are given at once.
AT_ONCE_BELOW = 10


def problem(rng: random.Random) -> Turn:
    """One problem with its answer, worked out where it needs steps."""
    kind = rng.random()
    if kind < 0.45:
        top = rng.choice(_LARGEST)
        return addition(rng, rng.randint(0, top), rng.randint(0, top))
    if kind < 0.75:
        top = rng.choice(_LARGEST)
        larger, smaller = sorted((rng.randint(0, top), rng.randint(0, top)), reverse=True)
        return subtraction(rng, larger, smaller)
    return product(rng, rng.randint(0, 12), rng.randint(0, 12))


def addition(rng: random.Random, a: int, b: int) -> Turn:
    """a + b, digit by digit from the right when either has several digits."""
    question = rng.choice((f"What is {a} + {b}?", f"What is {a} plus {b}?", f"Add {a} and {b}."))
    if max(a, b) < AT_ONCE_BELOW:
        return Turn(question, f"{a} + {b} = {a + b}.")
    steps, carry = [], 0
    for place in range(len(str(max(a, b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        steps.append(f"{x} + {y}{' + 1' if carry else ''} = {total}")
        carry = total // 10
    return Turn(question, f"{', '.join(steps)}. So {a} + {b} = {a + b}.")


def subtraction(rng: random.Random, a: int, b: int) -> Turn:
    """a - b with a >= b, digit by digit from the right, borrowing, when a has several digits."""
    question = rng.choice((f"What is {a} - {b}?", f"What is {a} minus {b}?", f"Subtract {b} from {a}."))
    if a < AT_ONCE_BELOW:
        return Turn(question, f"{a} - {b} = {a - b}.")
    steps, borrow = [], 0
    for place in range(len(str(a))):
        x, y = a // 10**place % 10 - borrow, b // 10**place % 10
        borrow = int(x < y)
        if borrow:
            x += 10
        steps.append(f"{x} - {y} = {x - y}")
    return Turn(question, f"{', '.join(steps)}. So {a} - {b} = {a - b}.")


def product(rng: random.Random, a: int, b: int) -> Turn:
    """a * b from the table up to 12."""
    question = rng.choice((f"What is {a} * {b}?", f"What is {a} times {b}?", f"Multiply {a} by {b}."))
    return Turn(question, f"{a} * {b} = {a * b}.")


def document(rng: random.Random) -> Document:
    """A chat of two to six problems."""
    return chat("arithmetic", [problem(rng) for _ in range(rng.randint(2, 6))])
