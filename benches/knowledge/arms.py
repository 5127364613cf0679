"""The arms: ways to give a model the domain. Each returns one answer a question, all from question form 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo import LLM, SamplingParams
from octavo.retrieval import Bm25, passage_message

from .domain import Domain

_PARAMS = {"temperature": 0.0, "max_tokens": 32, "repetition_penalty": 1.0}


def completion_prompt(question: str, system: str = "") -> str:
    """The prompt for a model without a chat template."""
    return (f"{system}\n\n" if system else "") + f"Question: {question}\nAnswer:"


def ask(llm: LLM, domain: Domain, systems: list[str], form: int = 1, **options: Any) -> list[str]:
    """The answers, each with its own system text ("": none). A model without a chat template completes "Answer:"."""
    asked = [(question.forms[form], system) for question, system in zip(domain.questions, systems, strict=True)]
    if llm.info()["model"]["chat_template"]:
        conversations = [
            [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": question}]
            for question, system in asked
        ]
        outputs = llm.chat(conversations, SamplingParams(**_PARAMS, **options), use_tqdm=False)
    else:
        prompts = [completion_prompt(question, system) for question, system in asked]
        outputs = llm.generate(prompts, SamplingParams(**_PARAMS, stop=["\n"], **options), use_tqdm=False)
    for output in outputs:
        if output.error is not None:
            raise output.error
    return [output.text.strip() for output in outputs]


def closed_book(llm: LLM, domain: Domain) -> list[str]:
    """The question alone."""
    return ask(llm, domain, [""] * len(domain.questions))


def pack(llm: LLM, domain: Domain, folder: Path) -> list[str]:
    """The whole text as a pack: made, loaded and named in the request."""
    path = folder / f"{domain.name}.pack"
    form = "chat" if llm.info()["model"]["chat_template"] else "text"
    llm.make_pack([domain.text], path, form=form)
    llm.load_pack(domain.name, path)
    try:
        return ask(llm, domain, [""] * len(domain.questions), pack=domain.name)
    finally:
        llm.unload_pack(domain.name)


def whole_text(llm: LLM, domain: Domain) -> list[str]:
    """The whole text as the system message."""
    return ask(llm, domain, [domain.text] * len(domain.questions))


def retrieved(llm: LLM, domain: Domain, k: int) -> list[str]:
    """The passages that BM25 finds for the question."""
    retriever = Bm25(domain.passages)
    systems = [str(passage_message(retriever.search(question.forms[1], k))["content"]) for question in domain.questions]
    return ask(llm, domain, systems)


def gold(llm: LLM, domain: Domain, **options: Any) -> list[str]:
    """The passage that holds the answer."""
    return ask(llm, domain, [domain.passages[question.passage] for question in domain.questions], **options)


def adapted(llm: LLM, domain: Domain, adapter: str) -> dict[str, list[str]]:
    """The question alone, with a LoRA adapter: in form 1, and in the form of its training."""
    nothing = [""] * len(domain.questions)
    return {
        "LoRA": ask(llm, domain, nothing, lora=adapter),
        "LoRA, form 0": ask(llm, domain, nothing, form=0, lora=adapter),
    }


def recall(domain: Domain, k: int) -> float:
    """How often the passage with the answer is among those that BM25 finds."""
    retriever = Bm25(domain.passages)
    hits = [
        domain.passages[question.passage] in [text for text, _ in retriever.search(question.forms[1], k)]
        for question in domain.questions
    ]
    return sum(hits) / len(hits)
