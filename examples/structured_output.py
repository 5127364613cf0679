"""Outputs that are valid by construction: a pydantic model, a regular expression, a grammar."""

from typing import Literal

from octavo import LLM, Grammar, JsonSchema, Regex, SamplingParams
from pydantic import BaseModel, Field


class Animal(BaseModel):
    kind: Literal["goose", "donkey", "fox"]
    legs: int = Field(ge=2, le=4)


with LLM() as llm:
    output = llm.generate("An animal as JSON:", SamplingParams(structured=JsonSchema(Animal), max_tokens=64))[0]
    print(Animal.model_validate_json(output.text))
    output = llm.generate("The bell rang at", SamplingParams(structured=Regex(r" [0-9]{1,2}:[0-5][0-9]")))[0]
    print(output.text)
    output = llm.generate("Is a fox a bird?", SamplingParams(structured=Grammar('start: "yes" | "no"')))[0]
    print(output.text)
